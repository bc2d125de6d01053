"""Inversion, prompt alignment, attention control and word masks, each against the same formula written out slowly."""

import itertools
import math

import pytest
import torch
from likeness.pipelines.spl.attention_control import (
    AttentionControl,
    AttentionSettings,
    choose_branches,
    edited_cross_attention,
    refinement,
    replacement,
)
from likeness.pipelines.spl.inversion import (
    Level,
    clean_from_noise,
    invert_by_ddim,
    lcm_timesteps,
    sample_by_virtual_inversion,
    sample_from_inversion,
    sampling_step,
    virtual_inversion_estimate,
)
from likeness.pipelines.spl.prompts import PromptTokens, align, alignment, read_prompt
from likeness.pipelines.spl.word_masks import (
    MapRecorder,
    attention_maps,
    edge_mask,
    map_limit,
    split_words,
    words_mask,
)

START, END = 1000, 1001


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def prompt(text: str, length: int = 12, pieces=lambda word: [hash_of(word)]) -> PromptTokens:
    """A prompt whose words are one token each, unless ``pieces`` says otherwise."""
    ids = [START, *(token for word in text.split() for token in pieces(word)), END]
    return read_prompt(text, ids + [0] * (length - len(ids)), len(ids) - 1, pieces)


def hash_of(word: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(word)) % 900 + 1


def letters(word: str) -> list[int]:
    return [ord(letter) for letter in word]


# ---- Inversion


def ddcm_scalar(x_s, x_t, e_s, e_t, x0, n, abar, following, eta):
    """One latent number through notes 2.7, term by term."""
    e_c = (x_s - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
    clean = x0 + ((x_t - x_s) - math.sqrt(1 - abar) * (e_t - e_s)) / math.sqrt(abar)
    s2 = eta * (1 - following)
    d = math.sqrt(1 - following - s2) * (e_t - e_s + e_c)
    noise = math.sqrt(s2) * n
    return clean, math.sqrt(following) * clean + d + noise, math.sqrt(following) * x0 + d + noise


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sigma_form", [False, True])
def test_virtual_inversion_is_the_papers_step_number_by_number(eta, sigma_form):
    abar, following, count = 0.3, 0.55, 40
    x_s, x_t, e_s, e_t, x0, n = randn(6, count, seed=1)
    expected = [ddcm_scalar(*(float(v[i]) for v in (x_s, x_t, e_s, e_t, x0, n)), abar, following, eta)
                for i in range(count)]  # fmt: skip
    levels = [Level.of_alpha_bar(value) for value in (abar, following, following)]
    scales = [1.0] * 3
    if sigma_form:
        levels = [Level.of_sigma(level.noise / level.signal) for level in levels]
        scales = [level.length for level in levels]
    seen = []

    def predict(i, latents):
        seen.append([x / scales[i] for x in latents])
        if i:
            return [latents[1]]
        source, target = (clean_from_noise(x, eps, levels[0]) for x, eps in zip((X_s, X_t), (e_s, e_t), strict=True))
        return [virtual_inversion_estimate(x0, target, source)]

    X_s, X_t = x_s * scales[0], x_t * scales[0]
    clean = predict(0, [X_s, X_t])[0]
    torch.testing.assert_close(clean, torch.tensor([row[0] for row in expected], dtype=torch.float64))
    stepped = sampling_step(X_t, clean, levels[0], levels[1], n, eta) / scales[1]
    torch.testing.assert_close(stepped, torch.tensor([row[1] for row in expected], dtype=torch.float64))

    # The loop starts both branches from one latent; its second step shows the latents that the first has made.
    expected = [ddcm_scalar(*(float(v[i]) for v in (x_t, x_t, e_s, e_t, x0, n)), abar, following, eta)
                for i in range(count)]  # fmt: skip
    seen.clear()
    X_s = X_t
    sample_by_virtual_inversion(predict, x0, X_t, levels, lambda i: n, eta=eta)
    for branch, column in ((1, 1), (0, 2)):
        torch.testing.assert_close(seen[1][branch], torch.tensor([row[column] for row in expected]).double())


def test_equal_predictions_give_the_source_back_exactly():
    source, start = randn(2, 4, 6, 5), randn(2, 4, 6, 5, seed=1)
    levels = [Level.of_sigma(sigma) for sigma in (14.0, 5.0, 1.0, 0.3, 0.0)]

    def predict(i, latents):
        wild = randn(2, 4, 6, 5, seed=10 + i)
        return [virtual_inversion_estimate(source, wild, wild)]

    result = sample_by_virtual_inversion(predict, source, start, levels, lambda i: randn(2, 4, 6, 5, seed=i))
    assert torch.equal(result, source)


def test_source_branch_holds_the_noised_source_and_one_step_is_the_estimate():
    source, levels = randn(1, 4, 4, 4), [Level.of_alpha_bar(value) for value in (0.1, 0.5, 0.9, 0.9)]
    noises, held = [randn(1, 4, 4, 4, seed=50 + i) for i in range(3)], []

    def predict(i, latents):
        held.append(latents[0])
        return [source + 0.1 * latents[1], source]

    start = levels[0].signal * source + levels[0].noise * randn(1, 4, 4, 4, seed=9)
    sample_by_virtual_inversion(predict, source, start, levels, lambda i: noises[i], branches=3)
    for i in (1, 2):
        torch.testing.assert_close(held[i], levels[i].signal * source + levels[i].noise * noises[i - 1])
    once = sample_by_virtual_inversion(predict, source, start, levels[:2], lambda i: pytest.fail("noise drawn"))
    assert torch.equal(once, source + 0.1 * start)


def gaussian_model(spread):
    """Exact clean predictions for data N(0, spread^2): the ODE's solutions are known in closed form."""
    return lambda x, level: x * level.signal * spread**2 / (level.signal**2 * spread**2 + level.noise**2)


def test_ddim_step_is_the_papers_formula():
    x, eps, abar, following = randn(3, 4), randn(3, 4, seed=1), 0.2, 0.6
    level, lower = Level.of_alpha_bar(abar), Level.of_alpha_bar(following)
    clean = (x - (1 - abar) ** 0.5 * eps) / abar**0.5
    expected = following**0.5 * clean + (1 - following) ** 0.5 * eps
    torch.testing.assert_close(sampling_step(x, clean, level, lower), expected)


@pytest.mark.parametrize("form", [Level.of_sigma, lambda s: Level.of_alpha_bar(1 / (1 + s * s)),
                                  lambda s: Level(1 - s / 20, s / 20)])  # fmt: skip
def test_ddim_inversion_follows_the_ode_and_iterations_make_it_exact(form):
    spread, source = 0.7, randn(2, 4, 3, 3)
    predict = gaussian_model(spread)
    levels = [form(sigma) for sigma in (*torch.logspace(1, -2, 200).tolist(), 0.0)]
    path = invert_by_ddim(lambda i, x: predict(x, levels[i]), source, levels)
    for x, level in list(zip(path, levels[:-1], strict=True))[::40]:
        grown = (level.signal**2 * spread**2 + level.noise**2) ** 0.5 / spread
        torch.testing.assert_close(x, source * grown, rtol=0.05, atol=1e-3)

    levels = [form(sigma) for sigma in (10.0, 4.0, 2.0, 1.0, 0.4, 0.0)]
    errors = []
    for iterations in (1, 3, 300):
        path = invert_by_ddim(lambda i, x: predict(x, levels[i]), source, levels, iterations)
        back = sample_from_inversion(lambda i, latents: [predict(latents[1], levels[i])], path, levels)
        errors.append((back - source).abs().max())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6


def test_ddim_inversion_wants_an_iteration():
    with pytest.raises(ValueError, match="iterations is 0"):
        invert_by_ddim(None, randn(1), [Level.of_sigma(1), Level.of_sigma(0)], 0)


def test_lcm_timesteps():
    assert lcm_timesteps(15) == [999, 939, 879, 799, 739, 679, 599, 539, 479, 399, 339, 279, 199, 139, 79]
    assert lcm_timesteps(1) == [999]
    assert lcm_timesteps(50) == list(range(999, 0, -20))
    for steps in (0, 51):
        with pytest.raises(ValueError, match=f"steps is {steps}"):
            lcm_timesteps(steps)


# ---- Prompts


def best_score(source, target):
    """Score of the best global alignment, by trying every increasing choice of pairs."""
    best = 0
    for count in range(1, min(len(source), len(target)) + 1):
        for left in itertools.combinations(range(len(source)), count):
            for right in itertools.combinations(range(len(target)), count):
                pairs = zip(left, right, strict=True)
                best = max(best, sum(1 if source[i] == target[j] else -1 for i, j in pairs))
    return best


@pytest.mark.parametrize("seed", range(30))
def test_alignment_reaches_the_best_score(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 7, (2,), generator=generator).tolist()
    source, target = (torch.randint(0, 4, (length,), generator=generator).tolist() for length in lengths)
    mapper = align(source, target)
    pairs = [(i, j) for j, i in enumerate(mapper) if i >= 0]
    assert all(source[i] == target[j] for i, j in pairs)
    assert all(a[0] < b[0] for a, b in itertools.pairwise(pairs))
    assert len(pairs) == best_score(source, target)


def test_ties_prefer_a_gap_in_the_source_then_in_the_target():
    # Traced from the end: a gap in the source leaves the last of the target's equal tokens without a partner.
    assert align([7], [7, 7]) == [0, -1]
    # And only then a gap in the target, which gives the first of the source's equal tokens away.
    assert align([7, 7], [7]) == [0]
    assert align([1, 2], [2, 1]) == [1, -1]
    assert align([], [1, 2]) == [-1, -1]


def test_padding_maps_to_itself():
    source, target = prompt("a cat sits"), prompt("a red cat sits")
    mapper = alignment(source, target)
    assert mapper == [0, 1, -1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert alignment(prompt("a cat", 5), prompt("a cat", 10)) == [0, 1, 2, 3, 4, -1, -1, -1, -1, -1]


def test_words_are_found_with_their_tokens():
    read = prompt("a Cat, and a big cat (red)", 30, letters)
    assert read.positions("cat") == [2, 3, 4, 13, 14, 15]
    assert read.positions("big,") == [10, 11, 12]
    assert read.positions("red") == [17, 18, 19]
    assert [name for name, _ in read.words] == ["a", "Cat", "and", "a", "big", "cat", "red"]
    with pytest.raises(ValueError, match="'dog' is not in the prompt. Its words are: a, Cat, and, big, cat, red"):
        read.positions("dog")
    with pytest.raises(ValueError, match="the prompt is empty"):
        prompt("").positions("dog")
    ids = [START, *letters("long"), END]
    with pytest.raises(ValueError, match="'text' stands behind the end"):
        read_prompt("long text", ids, 5, letters).positions("text")


# ---- Attention control


def slow_maps(q, k):
    """Attention map of one row and head ``[Nq, Nk]``, by loops."""
    rows = []
    for query in q:
        weights = [math.exp(float(query @ key) / math.sqrt(q.shape[-1])) for key in k]
        rows.append([weight / sum(weights) for weight in weights])
    return torch.tensor(rows, dtype=q.dtype)


def attend(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


PROMPTS = {
    "insertion": ("a cat sits", "a red cat sits"),
    "change": ("a cat on grass", "a dog on grass"),
    "all new": ("one two", "three four"),
    "same": ("a cat", "a cat"),
}


@pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("branches", [2, 3])
def test_cross_attention_equals_edited_maps(texts, branches):
    source, target = (prompt(text) for text in texts)
    weights = {texts[1].split()[-1]: 2.5}
    settings = AttentionSettings(layout_branch=branches == 3, word_weights=weights)
    edit = AttentionControl(settings, source, target).cross
    batch, tokens, width = 2, 5, 8
    q = randn(branches * batch, tokens, width, seed=1)
    k, v = (randn(branches * batch, source.length, width, seed=seed) for seed in (2, 3))
    ours = edited_cross_attention(attend, q, k, v, edit, branches)
    mapper = align(source.ids, target.ids)
    mapper += list(range(len(target.ids), target.length))
    for row in range(batch):
        other = (branches - 1 if branches == 3 else 0) * batch + row
        source_map, target_map = slow_maps(q[other], k[other]), slow_maps(q[batch + row], k[batch + row])
        for j, i in enumerate(mapper):
            if i >= 0:
                target_map[:, j] = source_map[:, i]
        for place in target.positions(texts[1].split()[-1]):
            target_map[:, place] *= 2.5
        torch.testing.assert_close(ours[row], target_map @ v[batch + row])


def test_prompts_repeated_by_the_host_give_the_same_attention():
    source, target = prompt("a cat sits", 12), prompt("a red cat sits on a very long wall " + "x " * 10, 24)
    edit = refinement(source, target)
    q, (k_s, v_s), (k_t, v_t) = randn(2, 5, 8, seed=1), randn(2, 12, 8, seed=2), randn(2, 24, 8, seed=3)
    source_map, target_map = slow_maps(q[0], k_s), slow_maps(q[1], k_t)
    for j, i in enumerate(alignment(source, target)):
        if i >= 0:
            target_map[:, j] = source_map[:, i]
    k = torch.stack([k_s.repeat(2, 1), k_t])
    v = torch.stack([v_s.repeat(2, 1), v_t])
    torch.testing.assert_close(edited_cross_attention(attend, q, k, v, edit, 2)[0], target_map @ v_t)
    assert edit.beside(v) is edit.beside(2 * v)  # made once, not in every layer
    assert edit.beside(v.half()).own.dtype == torch.float16
    with pytest.raises(ValueError, match=r"attends to 40 tokens, the prompts have 24 \(target\) and 12"):
        edit.repeated(40)


def test_replacement_moves_whole_words():
    source, target = prompt("a cat on mats", 20, letters), prompt("a fish on rugs", 20, letters)
    edit, maps = replacement(source, target), randn(3, 20, seed=4)
    moved = maps @ edit.transfer.to(maps).T
    # a: 1; cat: 2-4, fish: 2-5; on: 5-6, 6-7; mats: 7-10, rugs: 8-11; the closing token and what follows.
    expected = {0: [0], 1: [1], 6: [5], 7: [6], 8: [7], 9: [8], 10: [9], 11: [10], 12: [11], 19: [18]}
    for j, places in expected.items():
        torch.testing.assert_close(moved[:, j], maps[:, places].sum(dim=1))
    for j in (2, 3, 4, 5):
        torch.testing.assert_close(moved[:, j], maps[:, 2:5].sum(dim=1) / 4)
    assert edit.own.max() == 0
    with pytest.raises(ValueError, match="source prompt has 2 words and the target prompt 3"):
        replacement(prompt("a cat"), prompt("a red cat"))


def test_schedule_of_the_unified_control():
    control = AttentionControl(AttentionSettings(), prompt("a"), prompt("b"))
    assert [i for i in range(15) if control.cross_acts(i, 15)] == list(range(12))
    early = [i for i in range(15) if control.self_sources(i, 15, 64, True).queries == (0, 0)]
    assert early == list(range(11))
    never = AttentionControl(AttentionSettings(cross_fraction=0, self_fraction=0), prompt("a"), prompt("b"))
    always = AttentionControl(AttentionSettings(cross_fraction=1, self_fraction=1), prompt("a"), prompt("b"))
    assert not any(never.cross_acts(i, 15) for i in range(15))
    assert all(always.cross_acts(i, 15) for i in range(15))
    assert not never.settings.acts


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("branches", [2, 3])
def test_self_attention_of_the_branches_equals_loops(early, branches):
    settings = AttentionSettings(self_fraction=1.0 if early else 0.0, layout_branch=branches == 3)
    rule = AttentionControl(settings, prompt("a"), prompt("b")).self_sources(0, 15, 5, conditional=False)
    q, k, v = randn(3, branches * 2, 5, 4)
    ours = attend(*(choose_branches(x, chosen) for x, chosen in zip((q, k, v), rule, strict=True)))
    for row in range(2):
        own = {name: [x[b * 2 + row] for b in range(branches)] for name, x in (("q", q), ("k", k), ("v", v))}
        if early:
            maps = [slow_maps(own["q"][0], own["k"][0])] * branches
        else:
            maps = [slow_maps(own["q"][0], own["k"][0]), slow_maps(own["q"][1], own["k"][1])]
            maps += [slow_maps(own["q"][1], own["k"][0])] * (branches - 2)
        values = [own["v"][0], own["v"][1], own["v"][0]][:branches]
        for branch, (weights, value) in enumerate(zip(maps, values, strict=True)):
            torch.testing.assert_close(ours[branch * 2 + row], weights @ value)


def test_prompt_to_prompt_replaces_self_attention_in_small_maps_of_the_conditional_half_only():
    control = AttentionControl(AttentionSettings(method="refine", self_limit=100), prompt("a"), prompt("b"))
    assert control.self_sources(0, 10, 100, True).queries == (0, 0)
    for case in ((0, 10, 101, True), (0, 10, 100, False), (8, 10, 100, True)):
        assert control.self_sources(*case).queries == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "attention method is 'magic': use one of unified, refine, replace"),
        ({"cross_fraction": 1.2}, "cross_fraction is 1.2"),
        ({"self_fraction": -0.1}, "self_fraction is -0.1"),
        ({"method": "refine", "layout_branch": True}, "layout_branch belongs to the unified method"),
    ],
)
def test_bad_attention_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AttentionSettings(**options)


# ---- Word masks


def test_recorded_maps_are_the_mean_over_heads_layers_and_steps():
    q, k = randn(2, 12, 8, seed=1), randn(2, 7, 8, seed=2)
    ours = attention_maps(q, k, heads=2)
    for row in range(2):
        heads = [slow_maps(q[row][:, part], k[row][:, part]) for part in (slice(0, 4), slice(4, 8))]
        torch.testing.assert_close(ours[row].double(), sum(heads) / 2, rtol=1e-4, atol=1e-6)
    recorder = MapRecorder(limit=12)
    recorder.add(torch.ones(2, 48, 7), (8, 6))
    recorder.add(ours, (4, 3))
    recorder.add(torch.ones(2, 4, 7), (2, 2))
    recorder.add(3 * ours, (4, 3))
    torch.testing.assert_close(recorder.mean(), 2 * ours.transpose(1, 2).reshape(2, 7, 4, 3))
    assert not recorder.wants((2, 2))
    with pytest.raises(ValueError, match="no attention map was recorded"):
        MapRecorder(12).mean()


def test_size_of_the_maps_that_are_taken():
    limits = {(64, 64): 16 * 16, (128, 128): 32 * 32, (96, 96): 24 * 24, (72, 104): 18 * 26, (65, 65): 17 * 17}
    limits |= {(16, 16): 256, (8, 8): 256}
    assert {size: map_limit(size) for size in limits} == limits


def test_mask_of_words():
    read = prompt("a big cat", 20, letters)
    maps = randn(2, 20, 4, 6, seed=3).abs()
    for soft in (False, True):
        ours = words_mask(maps, read, ["big", "cat"], 0.4, soft)
        for row in range(2):
            expected = torch.zeros(4, 6, dtype=maps.dtype)
            for places in ((2, 3, 4), (5, 6, 7)):
                one = sum(maps[row, place] for place in places)
                one = one / one.max()
                expected = torch.maximum(expected, one if soft else (one > 0.4).to(one))
            torch.testing.assert_close(ours[row], expected)
    repeated = words_mask(maps.repeat(1, 2, 1, 1), read, ["cat"], 0.4)
    torch.testing.assert_close(repeated, words_mask(maps, read, ["cat"], 0.4))
    assert words_mask(torch.zeros(1, 20, 4, 6), read, ["cat"], 0.4).max() == 0
    with pytest.raises(ValueError, match="'dog' is not in the prompt"):
        words_mask(maps, read, ["dog"], 0.4)
    with pytest.raises(ValueError, match="threshold is 1"):
        words_mask(maps, read, ["cat"], 1)
    assert split_words(" cat,big  dog ,") == ["cat", "big", "dog"]
    with pytest.raises(ValueError, match="words is empty"):
        split_words(" , ")


def test_union_of_both_sides_on_their_own_edges():
    left, right = torch.zeros(2, 1, 16, 24)
    left[:, 4:12, 3:9] = 1
    right[:, 4:12, 14:20] = 1
    guides = [torch.nn.functional.interpolate(m[None], scale_factor=4).expand(-1, 3, -1, -1) for m in (left, right)]
    mask = edge_mask([(left, guides[0]), (right, guides[1])])
    assert mask.shape == (1, 1, 64, 96)
    truth = (guides[0] + guides[1])[:, :1]
    assert (mask - truth).abs().mean() < 0.02

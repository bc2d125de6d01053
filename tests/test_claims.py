"""The re-run claims of SPL: rival losses, intervals, and rows that differ in their losses alone."""

import math
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comfyui_environment import load_script
from likeness.pipelines.embedded.family import load_family
from likeness.pipelines.evaluation.claims import interval, verdict
from likeness.pipelines.portraits import render
from likeness.pipelines.randomness import generator
from likeness.pipelines.spl import StructureSettings, claims, preserve_structure, structure_loss
from likeness.pipelines.spl.claims import (
    COLUMNS,
    EDITS,
    ROWS,
    SOURCE_PROMPT,
    ClaimsSettings,
    claims_report,
    descend,
    dissimilarity,
    edited_by_rows,
    measure_claims,
    one_direction,
    plain_person,
    squared_error,
)
from likeness.pipelines.spl.edit_pipeline import EditSettings
from likeness.pipelines.spl.embedded import pipeline_of
from likeness.pipelines.spl.guidance import StructureGuidance
from likeness.pipelines.training import CheckpointError, TrainingError

for name in ("environment", "pack"):  # the script imports these by name
    load_script(name)
pytestmark = pytest.mark.usefixtures("one_thread")
# A third of the iterations: rows have to differ, not to be good.
SMALL = ClaimsSettings(
    people=2, batch=2, structure=StructureSettings(iterations=33), edit=EditSettings(steps=3), start=0.6
)


@pytest.fixture(scope="module")
def family():
    return load_family()


def images(count=2, size=14, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).double()


def test_dissimilarity_is_one_minus_ssim_of_every_window():
    one, other, settings = images(1), images(1, seed=1), StructureSettings(radius=2)
    grey = [picture[0].mean(0).numpy() for picture in (one, other)]
    values = []
    for row in range(14):
        for column in range(14):
            place = (slice(max(row - 2, 0), row + 3), slice(max(column - 2, 0), column + 3))
            a, b = (picture[place] for picture in grey)
            covariance = ((a - a.mean()) * (b - b.mean())).mean()
            values.append((2 * a.mean() * b.mean() + 1e-4) * (2 * covariance + 9e-4)
                          / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var() + b.var() + 9e-4)))  # fmt: skip
    assert dissimilarity(one, other, settings).item() == pytest.approx(1 - np.mean(values), abs=1e-9)
    assert dissimilarity(one, one, settings).item() == pytest.approx(0, abs=1e-12)


def test_one_direction_does_not_see_texture_that_the_edit_invents_on_flat_ground():
    flat, textured = torch.full((1, 3, 20, 20), 0.5).double(), images(1, 20)
    settings = StructureSettings()
    assert one_direction(textured, flat, settings).item() == pytest.approx(0, abs=1e-9)
    assert structure_loss(textured, flat).item() > 0.001


def test_descent_is_that_of_spl_on_another_loss():
    """Momentum descent of the squared error of the mean of R, G, B has a closed recurrence."""
    image, source = 0.25 + images(1) / 2, 0.25 + images(1, seed=1) / 2  # so that nothing is clipped
    settings = StructureSettings(iterations=7)
    weight = settings.structure_weight / (512 * 512)  # the mean over pixels and the scale to their number cancel
    difference, velocity = (image - source).mean(1) * 2, 0.0
    for _ in range(7):
        velocity = 0.9 * velocity + weight * 2 * (difference / 2) / 2 / 3
        difference = difference - velocity
    found = descend(image, source, squared_error, settings)
    assert torch.allclose((found - source).mean(1) * 2, difference, atol=1e-9)


def test_intervals_are_over_people():
    values = torch.tensor([[1.0, 3.0], [2.0, 6.0], [0.0, 1.0]])
    means = np.array([2.0, 4.0, 0.5])
    mean, half = interval(values)
    # 4.3027: the 97.5 % quantile of Student's t with two degrees of freedom, from a printed table.
    assert mean == pytest.approx(means.mean())
    assert half == pytest.approx(4.3027 * means.std(ddof=1) / math.sqrt(3), rel=1e-4)
    assert interval(torch.ones(1, 2))[1] == math.inf


def test_a_claim_is_decided_only_where_its_whole_interval_is_on_one_side_of_the_margin():
    columns = {"x": ("X", True)}

    def told(gains: list[float], margin: float = 0.0) -> str:
        found = {"a": {"x": torch.tensor(gains)[:, None]}, "b": {"x": torch.zeros(len(gains), 1)}}
        return verdict(found, columns, "more", "a", "b", "x", margin).split(":")[0]

    spread = [-0.1, 0.0, 0.1]  # the interval is its mean +- 0.2484
    assert told([0.26 + x for x in spread]) == "- holds" and told([0.23 + x for x in spread]) == "- not decided"
    assert told([-0.23 + x for x in spread]) == "- not decided"
    assert told([-0.26 + x for x in spread]) == "- DOES NOT HOLD"
    assert told([-0.23 + x for x in spread], 0.5) == "- holds"
    assert told([-0.3 + x for x in spread], 0.5) == "- not decided"


def test_counterfactuals_change_what_the_edit_says_and_nothing_else():
    person = plain_person(2, 0)
    for edit in EDITS:
        truth = edit.truth(person)
        same = replace(truth, lighting=person.lighting, expression=person.expression)
        assert same == person and truth != person


@torch.no_grad()
def test_rows_share_noise_and_the_first_steps(family):
    """A row through the shared memory equals the pipeline run on its own."""
    pipeline = pipeline_of(family)
    source = render([plain_person(2, index) for index in range(2)], 128).image
    found = {row.name: picture for row, picture in edited_by_rows(pipeline, source, EDITS[0], SMALL, 0)}
    clean = pipeline.encode(source)
    plan = pipeline.plan_of_texts(SMALL.edit, SOURCE_PROMPT, EDITS[0].target, "", clean)
    noise = torch.stack(
        [torch.randn((3, 4, 16, 16), generator=generator("claims", EDITS[0].name, number)) for number in range(2)], 1
    )
    plain = pipeline.decode(pipeline.edit(clean, plan, SMALL.edit, noise=noise))
    assert torch.allclose(found["baseline"], plain, atol=1e-5)
    structure = replace(SMALL.structure, color_weight=0.0)
    guidance = StructureGuidance(pipeline.decode(clean), plan.sigmas, structure, SMALL.start)
    guided = pipeline.decode(pipeline.edit(clean, plan, SMALL.edit, guidance, noise=noise))
    assert torch.allclose(found["+ SPL"], guided, atol=1e-5)
    refined = preserve_structure(guided, source, None, structure)
    assert torch.allclose(found["+ SPL + post-processing"], refined, atol=1e-5)
    assert len({round(picture.double().sum().item(), 3) for picture in found.values()}) == len(ROWS)


def test_a_whole_run_scores_every_row_and_says_what_holds(family, tmp_path, monkeypatch):
    seen = []
    found = measure_claims(family, SMALL, lambda done, total: seen.append((done, total)), tmp_path)
    assert set(found) == {row.name for row in ROWS} and seen[-1][0] == seen[-1][1] == 2 * len(EDITS) * len(ROWS)
    for columns in found.values():
        assert set(columns) == set(COLUMNS)
        assert all(values.shape == (2, len(EDITS)) and torch.isfinite(values).all() for values in columns.values())
    assert (found["+ SPL + post-processing"]["spl"] < found["baseline"]["spl"]).all()
    report = claims_report(found, SMALL)
    assert all(f"\n| {row.name} | " in report for row in ROWS) and "- holds: SPL in the loop" in report
    measured = []

    def measure(family, settings, numbers, progress):
        measured.append(numbers)
        return {row: {name: values + 1 for name, values in columns.items()} for row, columns in found.items()}

    monkeypatch.setattr(claims, "measure_people", measure)
    more = measure_claims(family, replace(SMALL, people=4), kept=tmp_path)
    assert measured == [range(2, 4)]
    assert torch.equal(more["baseline"]["spl"], torch.cat([found["baseline"]["spl"], found["baseline"]["spl"] + 1]))
    measure_claims(family, replace(SMALL, start=0.5), kept=tmp_path)
    assert measured == [range(2, 4), range(0, 2)]
    (tmp_path / "people_0_2.safetensors").write_bytes(b"damaged")
    measure_claims(family, SMALL, kept=tmp_path)
    assert measured[2:] == [range(0, 2)]


# ---- the command


# What measures, and what the command says when it was stopped.
MEASURED = {
    "claims spl": ("spl.claims.measure_claims", "the same command goes on"),
    "claims idetail": ("idetail.claims.measure", "the same command goes on"),
    "adapter idetail": ("idetail.claims.measure", "nothing is written"),
    "embedded": ("embedded.measure.measure_family", "no figures are written"),
}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs a command of ``evaluate_cli`` with ``measure`` in place of what takes long; the rest of its work is none."""
    script, root = load_script("evaluate_cli"), "likeness.pipelines"
    nobody = SimpleNamespace(read=lambda step: [])
    monkeypatch.setattr(f"{root}.idetail.claims.train_row", lambda row, settings, stop: tmp_path / "relight")
    monkeypatch.setattr(f"{root}.embedded.portrait_set.PortraitSet", lambda folder: nobody)
    monkeypatch.setattr(f"{root}.embedded.family.load_family", lambda folder: None)
    monkeypatch.setattr(script, "_judge", lambda options, held_out: None)
    needed = {
        "claims spl": [],
        "claims idetail": ["--data", "data", "--conv-in", "conv"],
        "adapter idetail": ["--conv-in", "conv", "--relight", "relight"],
        "embedded": ["--held-out", "data", "--measure"],
    }

    def run(name: str, measure) -> int:
        monkeypatch.setattr(f"{root}.{MEASURED[name][0]}", measure)
        place = [str(tmp_path)] if name == "embedded" else ["--output", str(tmp_path)]
        return script.main([*name.split(), *needed[name], *place])

    return run


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("how", ["SIGINT", "STOP"])
def test_a_stop_ends_what_measures_with_0_and_says_what_is_kept(command, tmp_path, capsys, name, how):
    def measure(*given):
        step = next(part for part in given if callable(part))
        if how == "SIGINT":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            (tmp_path / "STOP").touch()
        step(*["edits"][: name == "embedded"], 1, 2)
        pytest.fail("the stop was not heard")

    before = signal.getsignal(signal.SIGINT)
    assert command(name, measure) == 0
    told = capsys.readouterr().err
    assert f"evaluate_cli: stopped by {'SIGINT' if how == 'SIGINT' else 'the file'}" in told
    assert MEASURED[name][1] in told
    assert signal.getsignal(signal.SIGINT) is before and not (tmp_path / "STOP").exists()


@pytest.mark.parametrize("error", [TrainingError, CheckpointError, KeyboardInterrupt])
def test_errors_of_training_are_told_and_an_interrupt_before_anything_listens_is_a_stop(command, capsys, error):
    def measure(*given):
        raise error("mend this") if error is not KeyboardInterrupt else error

    assert command("claims idetail", measure) == (error is not KeyboardInterrupt)
    expected = "stopped by SIGINT" if error is KeyboardInterrupt else "evaluate_cli: mend this"
    assert expected in capsys.readouterr().err

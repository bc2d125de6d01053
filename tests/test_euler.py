"""Our Euler steps against diffusers' scheduler, step by step."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from likeness.pipelines.euler import clean_from_output, euler_schedule, euler_steps, guided, noise_like, scaled


def made(kind: str) -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                  prediction_type=kind)  # fmt: skip


def answer(given: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Stands in for a network."""
    return torch.tanh(1.3 * given.flip(-1) + float(timestep) / 1000)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_every_step_is_that_of_diffusers(kind, strength):
    ours, theirs, cleans, steps = made(kind), made(kind), [], []
    sigmas, timesteps = euler_schedule(ours, 6, strength, "cpu")
    theirs.set_timesteps(round(6 / strength))
    assert torch.equal(timesteps, theirs.timesteps[-6:]) and torch.equal(sigmas, theirs.sigmas[-7:])
    theirs.set_begin_index(len(theirs.timesteps) - 6)

    def predict_clean(x, sigma, step):
        cleans.append(clean_from_output(x, sigma, answer(scaled(x, sigma), timesteps[step]), kind))
        return cleans[-1]

    start = sigmas[0] * noise_like(torch.zeros(2, 4, 5, 6), torch.Generator().manual_seed(0))
    found = euler_steps(predict_clean, start, sigmas, lambda *step: steps.append(step))
    x = start
    for step, timestep in enumerate(theirs.timesteps[-6:]):
        output = answer(theirs.scale_model_input(x, timestep), timestep)
        result = theirs.step(output, timestep, x)
        torch.testing.assert_close(cleans[step], result.pred_original_sample, rtol=1e-4, atol=1e-4)
        x = result.prev_sample
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)
    assert steps == [(done, 6) for done in range(1, 7)]


def test_guidance_goes_from_the_unconditional_answer_beyond_the_conditional_one():
    blank, conditional = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])
    assert guided(blank, conditional, 1).tolist() == [3, 1] and guided(blank, conditional, 0).tolist() == [1, 2]
    assert guided(blank, conditional, 2.5).tolist() == [6, -0.5]


@pytest.mark.parametrize(("steps", "strength", "message"), [(4, 0.0, "strength is 0.0"), (4, 1.5, "strength is 1.5"),
                                                           (0, 1.0, "steps is 0")])  # fmt: skip
def test_schedules_that_cannot_be_are_refused(steps, strength, message):
    with pytest.raises(ValueError, match=message):
        euler_schedule(made("epsilon"), steps, strength, "cpu")

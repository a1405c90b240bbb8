"""Solvers against an equation whose solution is known: data from a normal distribution."""

import dataclasses
import math

import pytest
import torch

from mindspeed_mm.config.solvers import SOLVERS, Point

MEAN, SPREAD, NOISE = 0.7, 0.3, 1.3
ORDERS = {"euler": 1, "heun": 2, "adams": 2, "dpm++": 2, "unipc": 2}
# DPM-Solver++(2M) has steps of first order at the infinite ends of lambda, so that its error is h^2 log(1/h)
BELOW = {"dpm++": 0.35}


def spread(sigma):
    return math.sqrt(((1 - sigma) * SPREAD) ** 2 + sigma**2)


def velocity(latents, sigma):
    """dx/dsigma of x(sigma) = (1 - sigma) mean + spread(sigma) noise."""
    growth = (sigma - (1 - sigma) * SPREAD**2) / spread(sigma) ** 2
    return -MEAN + growth * (latents - (1 - sigma) * MEAN)


def solved(name, steps, shift=1.0, field=velocity):
    """The end of the path from the noise, and the number of evaluations."""
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    grid = [shift * sigma / (1 + (shift - 1) * sigma) for sigma in grid]
    solver, points, count = SOLVERS[name], [], 0
    latents = torch.tensor([NOISE], dtype=torch.float64)

    def evaluate(latents, sigma):
        nonlocal count
        count += 1
        return field(latents, sigma)

    for sigma, following in zip(grid[:-1], grid[1:], strict=True):
        points = [*points, Point.at(sigma, latents, evaluate(latents, sigma))][-1 - solver.memory :]
        moved = solver.step(points, following, evaluate)
        points[-1] = dataclasses.replace(points[-1], latents=moved.begin)
        latents = moved.latents
    return latents.item(), count


def error(name, steps, shift=1.0):
    return abs(solved(name, steps, shift)[0] - (MEAN + SPREAD * NOISE))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_error_falls_with_the_solvers_order(name, shift):
    order = math.log2(error(name, 640, shift) / error(name, 1280, shift))
    assert ORDERS[name] - BELOW.get(name, 0.1) < order < ORDERS[name] + 0.15


@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_takes_the_evaluations_that_the_table_says(name):
    assert solved(name, 8)[1] == 7 * SOLVERS[name].evaluations + 1


@pytest.mark.parametrize("name", SOLVERS)
def test_a_constant_velocity_is_solved_exactly(name):
    assert solved(name, 5, 3.0, lambda latents, sigma: torch.full_like(latents, 0.4))[0] == pytest.approx(NOISE - 0.4)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "euler"])
def test_second_order_beats_euler_at_eight_steps(name):
    assert error(name, 8) < 0.6 * error("euler", 8)

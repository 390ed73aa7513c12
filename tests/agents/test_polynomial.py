"""A policy as a polynomial: its degree, its errors, and training that keeps ranges narrow."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.polynomial.chebyshev import Chebyshev

from decision_s4.agents import polynomial
from decision_s4.agents.backbones import ops
from decision_s4.agents.decision import OptimiserOptions
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.range_aware import RangeAwareLearner, RangeOptions, excess
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.errors import UserError
from decision_s4.envs.timestep import TimeStep

STEPS = 6
ATTENTION = ("n_heads=2", "power=2", "window=4")
MIXED = tuple(f"full_{option}" for option in ATTENTION)
KINDS = {
    "s4d": ("d_state=4",),
    "s4": ("d_state=4",),
    "mlp": (),
    "power-softmax": ATTENTION,
    "hybrid": ("linear=s4d", "full=power-softmax", *MIXED),
}
# A norm makes 1 + 2 d of degree d; here 1 for each function: twice a norm, and attention 5 + 4.
DEGREES = {"s4d": 9, "s4": 9, "mlp": 9, "power-softmax": 81, "hybrid": 81}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_policy(backbone: str, mlp_ratio: float = 0.0, bounds: float = np.inf) -> SequencePolicy:
    torch.manual_seed(1)
    seen, done = (spaces.Box(-bound, bound, (n,)) for bound, n in ((np.inf, 3), (bounds, 2)))
    sizes = {"d_model": 4, "d_embed": 4, "n_layers": 1, "mlp_ratio": mlp_ratio}
    options = PolicyOptions(backbone=backbone, backbone_options=KINDS[backbone], **sizes)
    policy = SequencePolicy(seen, done, options).eval()
    for parameter in policy.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return policy


def make_batch(seed: int) -> SimpleNamespace:
    draw = torch.Generator().manual_seed(seed)
    start = torch.zeros(1, STEPS, dtype=torch.bool)
    start[:, 0] = True
    return SimpleNamespace(
        observation=torch.randn(1, STEPS, 3, generator=draw),
        previous_action=torch.randn(1, STEPS, 2, generator=draw) * ~start[..., None],
        return_to_go=1000 * torch.randn(1, STEPS, generator=draw),
        start=start,
        valid=torch.ones_like(start),
    )


def along(a: SimpleNamespace, b: SimpleNamespace, t: float) -> SimpleNamespace:
    """a + t b, of all inputs at all steps."""
    names = ("observation", "previous_action", "return_to_go")
    return SimpleNamespace(**vars(a) | {n: getattr(a, n) + t * getattr(b, n) for n in names})


def fitted(policy: SequencePolicy, degree: int) -> polynomial.Polynomials:
    sites = polynomial.measure(policy, [make_batch(seed) for seed in range(4)])
    return polynomial.Polynomials(sites, degree)


@pytest.mark.parametrize("backbone", KINDS)
def test_a_policy_is_a_polynomial_of_the_stated_degree(backbone):
    policy = make_policy(backbone)
    polynomials, a, b = fitted(policy, 1), make_batch(10), make_batch(11)

    def last_action(t: float) -> float:
        with polynomials.standing_in():
            return polynomial.actions_of(policy, along(a, b, t))[0, -1, 0].item()

    degree = DEGREES[backbone]
    assert polynomials.degree == degree
    # As t grows only the leading term counts: twice t is 2^degree times as much.
    t = 1e3 if degree > 50 else 1e5
    assert math.log2(abs(last_action(2 * t) / last_action(t))) == pytest.approx(degree, abs=0.2)

    def line(ts: np.ndarray) -> np.ndarray:
        return np.array([last_action(t) for t in ts])

    between = np.linspace(-2, 2, 50)
    exact, found = line(between), Chebyshev.interpolate(line, degree, (-2, 2))(between)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-8 * np.abs(exact).max())


def test_degree_and_depth_of_a_chain():
    policy = make_policy("s4d", mlp_ratio=1.0, bounds=1.0)
    polynomials = fitted(policy, 4)
    kinds = [part.asked.kind for part in polynomials.parts]
    layer = ["rsqrt", "gelu", "gelu", "rsqrt", "gelu"]
    assert kinds == ["gelu", *layer, "rsqrt", "tanh"]
    assert polynomials.degree == 4**5 * (1 + 2 * 4) ** 3
    assert polynomials.depth == 5 * 2 + 3 * (1 + 2 + 1)


@pytest.mark.parametrize("backbone", KINDS)
def test_many_terms_are_the_policy_and_errors_are_told(backbone):
    """Quotients of random scores have a wide range, 1 to 47,000: there it takes a thousand."""
    policy, batches = make_policy(backbone, bounds=1.0), [make_batch(seed) for seed in range(4)]
    off = []
    for degree in (2, 1000 if DEGREES[backbone] > 9 else 60):
        polynomials = fitted(policy, degree)
        off.append(polynomial.differences(policy, polynomials, batches).max())
        for part in polynomials.parts:
            reached = torch.linspace(part.reached.low, part.reached.high, 99_999)
            exact = ops.FUNCTIONS[part.asked.kind](reached)
            assert part.worst <= (part(reached) - exact).abs().max() * 1.1 + 1e-12
    assert off[0] > 10 * off[1]
    assert off[1] < 1e-3


@pytest.mark.parametrize("backbone", KINDS)
def test_step_by_step_it_is_the_same(backbone):
    policy, batch = make_policy(backbone, bounds=1.0), make_batch(3)
    polynomials = fitted(policy, 5)
    agent, actions = polynomial.PolynomialAgent(policy, polynomials), []
    state = agent.initial_state(1)
    for t in range(STEPS):
        seen = (part[:, t] for part in (batch.observation, batch.previous_action))
        step = TimeStep(*_ordered(*seen, batch.return_to_go[:, t], batch.start[:, t]))
        action, state = agent.act(step, state)
        actions.append(action)
    with polynomials.standing_in():
        torch.testing.assert_close(torch.stack(actions, 1), polynomial.actions_of(policy, batch))


def _ordered(observation, action, return_to_go, start):
    given = {
        "observation": observation,
        "previous_action": action,
        "return_to_go": return_to_go,
        "start": start,
    }
    return [given.get(name, torch.zeros(1)) for name in TimeStep._fields]


def test_a_function_meets_its_polynomial_within_the_interval():
    site = polynomial.Site(ops.Asked("rsqrt", 2, 1))
    site.see(torch.tensor([0.5, 2.0]))
    part = polynomial.Polynomial(site, 14)
    assert (part.low, part.high) == pytest.approx((0.5 / 1.25, 2.5))
    x = torch.linspace(part.low, part.high, 99)
    torch.testing.assert_close(part(x), x.rsqrt(), atol=1e-5, rtol=0)


def test_no_error_is_hidden_by_what_is_no_number():
    site = polynomial.Site(ops.Asked("gelu"))
    site.see(torch.tensor([-1.0, 1.0]))
    part = polynomial.Polynomial(site, 9)
    part.watched(torch.tensor([0.5, math.nan, 0.0]))
    part.watched(torch.tensor([0.1]))
    assert part.worst == part.reached.high == math.inf


@pytest.mark.parametrize("backbone", ["lru", "mamba", "transformer"])
def test_other_layers_are_refused(backbone):
    space = spaces.Box(-1, 1, (2,))
    policy = SequencePolicy(space, space, PolicyOptions(backbone=backbone, d_model=8))
    with pytest.raises(UserError, match=f"--polynomial cannot serve the backbone {backbone}"):
        polynomial.check_polynomial(policy, "--polynomial")


def test_images_are_refused():
    seen = spaces.Box(0, 255, (24, 24, 1), np.uint8)
    policy = SequencePolicy(seen, spaces.Discrete(2), PolicyOptions(d_model=8))
    with pytest.raises(UserError, match="--polynomial needs observations of numbers"):
        polynomial.check_polynomial(policy, "--polynomial")


def test_excess_by_hand():
    acts, roots = ops.Asked("gelu"), ops.Asked("rsqrt", 2, 1)
    assert excess(acts, torch.tensor([[5.0, -6.0], [1.0, -4.0]]), 4.0) == pytest.approx(2.5)
    assert excess(roots, torch.tensor([[4 * math.e], [1.0]]), 4.0) == pytest.approx(0.5)


def test_range_aware_training_narrows_ranges():
    """The same imitation from the same start, with and without the penalty."""
    options = OptimiserOptions(learning_rate=3e-2, warmup_steps=1, gradient_clip=10.0)
    widths = []
    for weight in (1e-12, 1.0):
        policy, batch = make_policy("s4d", bounds=1.0), make_batch(5)
        batch.action = torch.tanh(batch.observation[..., :2])
        learner = RangeAwareLearner(policy, options, 30, RangeOptions(weight, range_limit=2.0))
        for _ in range(30):
            learner.update(batch)
        sites = polynomial.measure(policy.eval(), [batch])
        widths.append(max(site.high / site.low for site in sites if site.asked.kind == "rsqrt"))
    assert widths[1] < 2.0**2 * 1.1 < 0.5 * widths[0]

"""What recordings read beside their own memory stays where it lies."""

import weakref

import torch

from decision_s4.kernels import cuda_graph


def test_a_recording_holds_what_it_read_when_others_have_taken_its_place():
    @cuda_graph.remembered
    def ones(count: int) -> torch.Tensor:
        return torch.ones(count)

    with cuda_graph._reading() as read:
        first = weakref.ref(ones(3))
        assert first() is ones(3)  # kept
    other = weakref.ref(ones(4))  # asked for outside
    for count in range(5, 5 + 256):
        ones(count)
    assert first() is read[0] and other() is None


def test_what_was_made_without_gradients_serves_training():
    @cuda_graph.remembered
    def two(device: torch.device) -> torch.Tensor:
        return torch.tensor(2.0, device=device)

    with torch.inference_mode():
        two(torch.device("cpu"))
    weight = torch.ones((), requires_grad=True)
    (weight * two(torch.device("cpu"))).backward()
    assert weight.grad == 2

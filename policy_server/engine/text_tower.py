"""The text tower kept in host memory: it visits the GPU only to read a prompt that nobody has asked before.

Half the weights of the network serve the prompt alone, and a robot asks with the same sentence for minutes.
With the cache warm they are dead weight: Nano holds 15 GB of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from wamserve.policy_server.world_model.network import WorldModel
from wamserve.policy_server.world_model.prompt_kv import PromptKV

Text = tuple[Tensor, Tensor, Tensor]  # what a layer's `text` returns


class OffloadedTextTower:
    """`prefill` of a network whose text weights live on the host. Takes the network's place in `PromptCache`.

    The weights of the tower move into (pinned) host memory when this is made, stream to the device for one
    `prefill`, layer by layer, and leave it again; the numbers are those of the network's own `prefill`.
    """

    def __init__(self, network: WorldModel) -> None:
        self.network = network
        self.device = network.device
        self.reads = 0  # prompts that had to be read, each a copy of the tower over the bus
        self.host = {name: self._to_host(parameter) for name, parameter in text_parameters(network)}

    def _to_host(self, parameter: nn.Parameter) -> Tensor:
        held = parameter.data.to("cpu", copy=True)
        held = held.pin_memory() if self.device.type == "cuda" else held
        parameter.data = torch.empty(0, dtype=held.dtype, device=self.device)
        return held

    @property
    def nbytes(self) -> int:
        """Bytes that the device does not hold."""
        return sum(held.nbytes for held in self.host.values())

    @torch.no_grad()
    def prefill(self, token_ids: Tensor, lengths: Sequence[int] | None = None) -> PromptKV:
        """As `WorldModel.prefill`."""
        self.reads += 1
        parameters = dict(text_parameters(self.network))
        self._fetch(parameters, [name for name in parameters if not name.startswith("layers.")])
        for index, layer in enumerate(self.network.layers):
            names = [name for name in parameters if name.startswith(f"layers.{index}.")]
            layer.text = self._visiting(layer.text, parameters, names)  # type: ignore[assignment, arg-type]
        try:
            return self.network.prefill(token_ids, lengths)
        finally:
            for layer in self.network.layers:
                del layer.text  # the method shows again
            self._drop(parameters, list(parameters))

    def _visiting(
        self, text: Callable[..., Text], parameters: dict[str, nn.Parameter], names: Sequence[str]
    ) -> Callable[..., Text]:
        """A layer's `text` whose weights are on the device while it runs: one layer's worth at a time."""

        def run(*args: Tensor) -> Text:
            self._fetch(parameters, names)
            out = text(*args)
            self._drop(parameters, names)
            return out

        return run

    def _fetch(self, parameters: dict[str, nn.Parameter], names: Sequence[str]) -> None:
        for name in names:
            parameters[name].data = self.host[name].to(self.device, non_blocking=True)

    def _drop(self, parameters: dict[str, nn.Parameter], names: Sequence[str]) -> None:
        for name in names:
            parameters[name].data = torch.empty(0, dtype=self.host[name].dtype, device=self.device)


def text_parameters(network: WorldModel) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that `prefill` reads and `denoise` never does."""
    generation = ("_moe_gen", ".add_", ".to_add_out", ".norm_added_")
    for name, parameter in network.named_parameters():
        if name.startswith("embed_tokens.") or (
            name.startswith("layers.") and not any(part in name for part in generation)
        ):
            yield name, parameter

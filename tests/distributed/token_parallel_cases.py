"""Run on ranks: trains and checks small backbones that are spread over ranks, and writes down what came out."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from rankmixer_dist.checkpoint.storage import read_pieces, write_pieces
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.models.backbone import Backbone, Pooled
from rankmixer_dist.models.backbones import build_backbone
from rankmixer_dist.parallel.engine import DeepSpeedEngine, DenseEngine, OptimizerSettings, PlainEngine
from rankmixer_dist.parallel.expert_groups import expert_grid
from rankmixer_dist.parallel.token_parallel import spread
from rankmixer_dist.parallel.topology import Topology, all_gather_objects, process_group, sum_over_ranks
from rankmixer_dist.pieces import places_of

ROWS, FEATURES, STEPS, SAVED_AT = 24, 6, 32, 16
SIZES = {"num_tokens": 8, "token_dim": 16, "num_blocks": 3, "hidden_dim": 24}
MODELS = {
    "post": {"name": "rankmixer"},
    "pre": {"name": "rankmixer", "norm": "pre"},
    "large": {"name": "tokenmixer_large", "down_init": 1.0},
}


class Small(nn.Module):
    """Shared parameters before, inside and after those that can be owned."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.tokens = nn.Linear(FEATURES, SIZES["num_tokens"] * SIZES["token_dim"])
        self.backbone = build_backbone(**SIZES, **MODELS[model])
        self.head = nn.Linear(SIZES["token_dim"], 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, features] -> [B]."""
        tokens = self.tokens(x).unflatten(1, (SIZES["num_tokens"], SIZES["token_dim"]))
        return self.head(self.backbone(tokens).out_BD.to(x.dtype)).squeeze(1)


def full_model(model: str) -> Small:
    """The same weights on every rank."""
    torch.manual_seed(3)
    return Small(model)


def build(case: dict, topology: Topology) -> DenseEngine:
    """The engine of a case: `ep` 0 is the reference, one process and no collectives."""
    model = full_model(case["model"])
    settings = OptimizerSettings(kind="adam", lr=0.01, weight_decay=0.01, clip_norm=case.get("clip", 0.3))
    if case["ep"] == 0:
        return PlainEngine(model, settings)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    spread(model.backbone, expert_grid(case["ep"]), case["mode"], case.get("pieces", 1))
    assert {name: place.shape for name, place in places_of(model).items()} == shapes
    precision = case.get("precision", "fp32")
    rows = ROWS // topology.world_size
    return DeepSpeedEngine(model, settings, zero_stage=case["stage"], precision=precision, rows_per_rank=rows)


def train(engine: DenseEngine, steps: range, topology: Topology) -> list[float]:
    """Losses of the same global batches, whatever the ranks."""
    share = ROWS // topology.world_size
    mine = slice(topology.rank * share, (topology.rank + 1) * share)
    dtype = next(engine.module.parameters()).dtype
    losses = []
    for step in steps:
        random = torch.Generator().manual_seed(step)
        x, weight = torch.randn(ROWS, FEATURES, generator=random), torch.rand(ROWS, generator=random)
        weight[weight < 0.2] = 0
        y = torch.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2]
        loss = (((engine(x[mine].to(dtype)).float() - y[mine]) ** 2) * weight[mine]).sum() / weight.sum()
        engine.backward(loss * topology.world_size)
        engine.step(0.01 / (1 + 0.1 * step))
        losses.append(float(sum_over_ranks(loss)))
    return losses


def trained(case: dict, folder: Path, topology: Topology) -> dict:
    """Trains a case from the start, or from where another stopped, and leaves its state in `folder`."""
    engine, name = build(case, topology), case["name"]
    if "source" in case:
        engine.make_room(("exp_avg", "exp_avg_sq"), SAVED_AT)
        read_pieces(engine.pieces(), folder / f"{case['source']}-half")
        engine.refresh()
        write_pieces(engine.pieces(), folder / f"{name}-taken-up")
        losses = []
    else:
        losses = train(engine, range(SAVED_AT), topology)
        write_pieces(engine.pieces(), folder / f"{name}-half")
    losses += train(engine, range(SAVED_AT, STEPS), topology)
    write_pieces(engine.pieces(), folder / f"{name}-end")
    return {"name": name, "losses": losses, "updates": engine.updates}


def backbone_of(options: dict) -> Backbone:
    """The same weights every time; a RankMixer unless the options name another backbone."""
    torch.manual_seed(5)
    return build_backbone(**{"name": "rankmixer"} | options)


def side_by_side(pooled: Pooled) -> Tensor:
    """[B, (stages + 1) D], the output last."""
    return torch.cat([*pooled.stages, pooled.out_BD], dim=1)


def passes(ep: int, mode: str, pieces: int, options: dict, topology: Topology) -> dict:
    """Difference of one forward and backward from the local model's, on this rank's rows, and what was sent.

    The output stands for all vectors that are pooled: in training the auxiliary stages are beside it.
    """
    whole, part = backbone_of(options), backbone_of(options)
    traffic = spread(part, expert_grid(ep), mode, pieces)
    rows = 3
    x = torch.randn(topology.world_size, rows, options["num_tokens"], options["token_dim"])
    gradient = torch.randn(topology.world_size, rows, (1 + whole.num_auxiliary) * options["token_dim"])
    expected_x, found_x = x.clone().requires_grad_(), x[topology.rank].clone().requires_grad_()
    expected, found = (
        side_by_side(whole(expected_x.flatten(0, 1))).unflatten(0, (-1, rows)),
        side_by_side(part(found_x)),
    )
    expected.backward(gradient)
    found.backward(gradient[topology.rank])
    pairs = [(found.detach(), expected.detach()), (found_x.grad, expected_x.grad)]
    apart = [float((mine - of_all[topology.rank]).abs().max() / of_all.abs().max()) for mine, of_all in pairs]
    worst = [max(values) for values in zip(*all_gather_objects(apart), strict=True)]
    sent = {name: value for name, value in vars(traffic).items() if not name.startswith("_")}
    assert (traffic.seconds() > 0) == (ep > 1)
    traffic.reset()
    assert not any(vars(traffic).values()) and traffic.seconds() == 0
    return {"output": worst[0], "input_gradient": worst[1], "sent": sent, "rows": rows, "pooled": str(found.dtype)}


def refused(ep: int, options: dict) -> str:
    """What is said about a size that does not work out."""
    try:
        spread(backbone_of(options), expert_grid(ep), "token")
    except ValueError as error:
        return str(error)
    return "nothing"


def main(arguments: list[str]) -> None:
    """Takes a folder and a JSON object of the cases to do, by kind; prints a JSON object a case."""
    folder, kinds = Path(arguments[0]), json.loads(arguments[1])
    with process_group() as topology:

        def say(kind: str, case: dict, result: dict) -> None:
            if topology.is_first:
                print(json.dumps({"kind": kind, "ranks": topology.world_size} | case | result), flush=True)

        for case in kinds.get("train", []):
            say("train", case, trained(case, folder, topology))
        for case in kinds.get("passes", []):
            say("passes", case, passes(case["ep"], case["mode"], case["pieces"], case["options"], topology))
        for case in kinds.get("refuse", []):
            say("refuse", case, {"said": refused(case["ep"], case["options"])})


if __name__ == "__main__":
    run_verb(main)

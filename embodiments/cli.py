"""`wam ls embodiments`, `wam ls embodiment`, `wam check contract`, `wam check episode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from wamserve.embodiments.contract import Embodiment, diff, load, load_file, names
from wamserve.embodiments.show import show


def ls_embodiments() -> int:
    """One line per contract: rows x numbers of a chunk (1 + for a measured state row), and rate."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("name", "actions", "id", "what it is"):
        table.add_column(head, no_wrap=head != "what it is")
    for name in names():
        e = load(name)
        state = "1 + " if e.model.state_row else ""
        actions = f"{state}{e.model.chunk} x {e.model.width}, {e.model.rate_hz} Hz"
        table.add_row(name, actions, str(e.model.domain_id), e.title)
    _console().print(table)
    return 0


def ls_embodiment(
    name: Annotated[str, Positional, arg(help="a contract's name, the start of one, or a TOML file")],
) -> int:
    """One contract as a person reads it."""
    started = [known for known in names() if known.startswith(name)]
    chosen = [name] if name in started or not started else started
    for each in chosen:
        show(_resolve(each), _console())
    return 0


def check_contract(
    a: Annotated[str, Positional, arg(help="name or TOML file")],
    b: Annotated[str, Positional, arg(help="name or TOML file")],
) -> int:
    """Print the fields in which two contracts differ; exit 1 when they do."""
    one, two = _resolve(a), _resolve(b)
    console = _console()
    fields = diff(one, two)
    for half in ("model", "wire"):
        differing = fields[half]
        if not differing:
            console.print(f"{half} half: equal, {getattr(one, half + '_hash')[:16]}")
            continue
        table = Table(
            title=f"{half} half: {len(differing)} fields differ", title_justify="left", title_style="bold"
        )
        table.add_column("field", overflow="fold")
        table.add_column(one.name, overflow="fold")
        table.add_column(two.name, overflow="fold")
        for field, (left, right) in differing.items():
            table.add_row(field, _plain(left), _plain(right))
        console.print(table)
    return int(any(fields.values()))


def check_episode(
    path: Annotated[
        Path, Positional, arg(help="LeRobot folder, a parquet file in one, or .json model-space rows")
    ],
    *,
    embodiment: str,
    episode: int | None = None,
) -> int:
    """Run a recorded episode through its contract and say what is suspicious; exit 1 when something is.

    Args:
        embodiment: contract the recording claims to follow.
        episode: episode_index inside the data set; the first by default.
    """
    from wamserve.embodiments.check import check_path

    contract = _resolve(embodiment)
    console = _console()
    console.print(
        f"checking {path} against {contract.name} (model half {contract.model_hash[:16]})", soft_wrap=True
    )
    found = check_path(path, contract, episode)
    for finding in found:
        console.print(f"[bold]{finding.name}[/bold]: {finding.what}", soft_wrap=True)
        console.print(f"    seen      {finding.seen}", soft_wrap=True, markup=False)
        console.print(f"    expected  {finding.expected}", soft_wrap=True, markup=False)
        console.print(f"    try       {finding.fix}", soft_wrap=True, markup=False)
    console.print(f"{len(found)} findings" if found else "nothing suspicious")
    return int(bool(found))


def _resolve(name: str) -> Embodiment:
    return load_file(name) if name.endswith(".toml") else load(name)


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _console() -> Console:
    # Piped output keeps whole lines: a contract is grepped as often as it is read.
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=220)

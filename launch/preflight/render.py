"""The report for a person: a row for each node, what is wrong, and the verdict."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from launch.preflight.evidence import Evidence, names_of
from launch.preflight.facts import Gpu, Rank
from launch.preflight.host import expand
from launch.preflight.report import Report
from llm_pretrain.terminal import console

_ROWS = 40
"""Nodes that are shown, those that fail first."""
_LINES = 8
"""Findings of one check that are shown."""
_UNREADABLE = "not readable"


def show(report: Report, *, as_json: bool) -> None:
    """Print the report: a table, or JSON with the verdict on standard error."""
    if as_json:
        print(report.json(), end="", flush=True)
        print(report.summary, file=sys.stderr, flush=True)
        return
    screen = console()
    screen.print(_table(report))
    for line in _lines(report):
        screen.print(escape(line), highlight=False, soft_wrap=True)
    sys.stdout.flush()


def _table(report: Report) -> Table:
    evidence = report.evidence
    title = "matmul: TFLOP/s. inside, between, pair, write: GB/s. free: of the GPUs, of the disk"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("node", overflow="fold")
    for name in ("ranks", "matmul", "inside", "between", "pair", "free", "write", "disk", "cores"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("ecc, xid", "fails"):
        table.add_column(name)
    failing = [f.node for f in report.findings if f.fails and f.node]
    nodes = list(dict.fromkeys([*failing, *evidence.nodes]))
    for node in nodes[:_ROWS]:
        failed = (f.check for f in report.findings if f.fails and f.node == node)
        table.add_row(node, *_cells(evidence, node), ", ".join(dict.fromkeys(failed)))
    if len(nodes) > _ROWS:
        table.add_row(f"and {len(nodes) - _ROWS} more")
    table.add_section()
    hardware = evidence.hardware
    promised = (hardware.matmul, hardware.inside_node, hardware.between_nodes)
    table.add_row("profile", "", *(_number(value) for value in promised))
    return table


def _cells(evidence: Evidence, node: str) -> Iterator[str]:
    ranks = evidence.by_node()[node]
    gpus = [rank.gpu for rank in ranks if rank.gpu]
    files = next((rank.files for rank in ranks if rank.files), None)
    links = [evidence.links[rank.rank] for rank in ranks if rank.rank in evidence.links]
    yield str(len(ranks))
    yield _range(rank.matmul for rank in ranks)
    yield _range(one.inside for one in links)
    yield _range(one.between for one in links)
    yield _range(max(one.pairs, default=None) for one in links)
    yield f"{min(gpu.free for gpu in gpus):.0%}" if gpus else "-"
    yield _number(files.rate) if files else "-"
    yield f"{files.free:,.0f} GB" if files else "-"
    yield _range(float(len(expand(rank.host.cores))) for rank in ranks if rank.host)
    yield _errors(gpus) if gpus else "-"


def _errors(gpus: list[Gpu]) -> str:
    ecc = [gpu.uncorrected for gpu in gpus if gpu.uncorrected is not None]
    xids = sorted({xid for gpu in gpus for xid in gpu.xids or ()})
    seen = any(gpu.xids is not None for gpu in gpus)
    counts = str(sum(ecc)) if ecc else _UNREADABLE
    return f"{counts}, {xids or 'none' if seen else _UNREADABLE}"


def _lines(report: Report) -> Iterator[str]:
    evidence = report.evidence
    yield f"profile: {report.cluster}, for {evidence.hardware.device}"
    yield from _common("device", evidence, lambda rank: rank.device)
    yield from _common(
        "huge pages", evidence, lambda rank: rank.host.huge_pages if rank.host else None
    )
    yield from _common(
        "memory policy", evidence, lambda rank: rank.host.policy if rank.host else None
    )
    clocks = [r.gpu.clock for r in evidence.ranks if r.gpu and r.gpu.clock is not None]
    if clocks:
        yield f"clocks: {min(clocks)} to {max(clocks)} MHz, median {median(clocks):.0f}"
    networks = {one.network for one in evidence.links.values() if one.network}
    on_gpu = any(rank.gpu for rank in evidence.ranks)
    if evidence.links and on_gpu:
        yield f"NCCL's network: {', '.join(sorted(networks)) or _UNREADABLE}"
    if evidence.ranks:
        versions = evidence.ranks[0].versions.items()
        yield f"versions: {', '.join(f'{name} {version}' for name, version in versions)}"
    if report.skipped:
        yield f"no all-reduce: {report.skipped}"
    yield ""
    for check, findings in report.by_check().items():
        for finding in findings[:_LINES]:
            kind = "FAILS" if finding.fails else "note"
            yield f"{kind}  {finding.node or 'no single node'}  {check}: {finding.text}"
        if len(findings) > _LINES:
            yield f"       and {len(findings) - _LINES} more of {check}; the JSON has all"
    if report.exclude:
        yield f"exclude: {','.join(report.exclude)}"
    yield f"{report.summary} ({report.seconds:.0f} s)"


def _common(name: str, evidence: Evidence, value: Callable[[Rank], str | None]) -> Iterator[str]:
    """A value that ranks should have in common, and who has which when they have not."""
    found = {rank.rank: value(rank) or _UNREADABLE for rank in evidence.ranks}
    counts = Counter(found.values())
    if len(counts) == 1:
        yield f"{name}: {next(iter(counts))}"
    elif counts:
        kinds = (f"{v} ({names_of([r for r in found if found[r] == v])})" for v in counts)
        yield f"{name}: {', '.join(kinds)}"


def _range(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = _number(min(known)), _number(max(known))
    return low if low == high else f"{low}-{high}"


def _number(value: float | None) -> str:
    """Three digits; of small values, which only CPUs have, fewer."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"

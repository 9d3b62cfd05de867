# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""The scoreboard of run_benchmark.py as Markdown, tables and a picture."""

import numpy as np

from atomic_files import save_figure
from metrics_atomica import LOWER_IS_BETTER
from model_card import markdown_table
from splitting import SETS


def _number(value):
    if value is None or np.isnan(value):
        return "not defined"
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 1e5 else f"{value:.3g}"


def _with_spread(entry, metric):
    mean, spread = entry.mean(metric), entry.spread(metric)
    if spread is None or np.isnan(spread):
        return _number(mean)
    return f"{_number(mean)} ± {spread:.3f}" if 0.01 <= abs(mean) < 1e5 else f"{mean:.3g} ± {spread:.2g}"


def _best(summary):
    """Name of the best row in the first metric; None if it is defined for none."""
    metric = summary.task.metric
    means = {name: entry.mean(metric) for name, entry in summary.entries.items() if not np.isnan(entry.mean(metric))}
    if not means:
        return None
    return min(means, key=means.get) if metric in LOWER_IS_BETTER else max(means, key=means.get)


def _arrow(metric):
    return f"{metric} {'↓' if metric in LOWER_IS_BETTER else '↑'}"


def _main_table(summaries, names, most):
    best = [_best(summary) for summary in summaries]
    lines = []
    for name in names:
        cells = []
        for summary, winner in zip(summaries, best):
            entry = summary.entries.get(name)
            text = "" if entry is None else _with_spread(entry, summary.task.metric)
            if entry is not None and len(entry.seeds) < most:
                text += f" ({len(entry.seeds)} seed{'s' * (len(entry.seeds) > 1)})"
            cells.append(f"**{text}**" if name == winner and text else text)
        lines.append([name, *cells])
    return markdown_table(["model", *(f"{s.task.heading}, {_arrow(s.task.metric)}" for s in summaries)], lines)


def _in_brackets(pair):
    return "" if pair is None else f" [{_number(pair[0])}, {_number(pair[1])}]"


def _task_section(summary, reference, leaks, data):
    task, metric = summary.task, summary.task.metric
    units = f" in {task.units}" if task.units else ""
    sizes = ", ".join(f"{part} {summary.sizes[part]}" for part in SETS)
    lines = [f"### {task.heading}", "", f"`{data.path.name}`: {', '.join(data.label_columns)}{units}; {task.source}; licence: "
             f"{task.licence}. Split: {task.split_in_words()}; rows: {sizes}.", ""]  # fmt: skip
    columns = [*task.metrics]
    show_unseen = any(entry.unseen is not None for entry in summary.entries.values())
    show_ratio = any(entry.ratio is not None for entry in summary.entries.values())
    header = ["model", "seeds", f"{_arrow(metric)} [95 %]", *map(_arrow, columns[1:])]
    if reference in summary.entries:
        header += [f"{metric} minus that of {reference} [95 %]", "over seeds alone [95 %]"]
    header += [f"{metric}, molecules not in training"] * show_unseen + ["better than the mean, times"] * show_ratio
    table = []
    for name, entry in summary.entries.items():
        cells = [name, str(len(entry.seeds)), _with_spread(entry, metric) + _in_brackets(entry.interval)]
        cells += [_with_spread(entry, other) for other in columns[1:]]
        if reference in summary.entries:
            found = entry.difference
            cells.append("" if found is None else f"{found.mean:+.3f}{_in_brackets(found.interval)}")
            cells.append("" if found is None else _in_brackets(found.over_seeds).strip())
        cells += [_number(entry.unseen) if entry.unseen is not None else ""] * show_unseen
        cells += [f"{entry.ratio:.2f}" if entry.ratio is not None else ""] * show_ratio
        table.append(cells)
    notes = [*data.notes, *leaks, *summary.notes]
    return "\n".join([*lines, markdown_table(header, table), "", *(f"- {note}" for note in notes), ""])


def scoreboard(arguments, summaries, rows, reference, leaks, data, failures, corpus, used, left_over):
    """Text of scoreboard.md."""
    names = [row.name for row in rows]
    groups = {}
    for summary in summaries:
        groups.setdefault(summary.task.group, []).append(summary)
    seeds = list(range(arguments.first_seed, arguments.first_seed + arguments.seeds))
    text = ["# Scoreboard", ""]
    for group, members in groups.items():
        there = [name for name in names if any(name in summary.entries for summary in members)]
        text += [f"## {group}", "", _main_table(members, there, len(seeds)), ""]
    text += [
        f"Test sets; mean ± standard deviation over the seeds {', '.join(map(str, seeds))}; best in bold; ↓ less is better, "
        "↑ more is better. Over several labels a number is the mean of those for which it is defined; missing labels are left "
        "out.",
        "",
        f"Intervals: bootstrap, {arguments.num_bootstrap} resamples, each of the seeds and of the test rows (the same for all "
        "models; with few seeds too narrow). Differences are between cells of the same seed; `over seeds alone`: Student's t, "
        "for other seeds on the same molecules.",
        "",
        "![scoreboard](scoreboard.png)",
        "",
        "## Tasks",
        "",
    ]
    text += [_task_section(summary, reference, leaks[summary.task.name], data[summary.task.name]) for summary in summaries]
    if corpus:
        text += [f"Pretraining corpus: {'; '.join(corpus)}. Compared are whole rows: canonical SMILES with stereochemistry, "
                 "salts and charges; other forms of a molecule are not found.", ""]  # fmt: skip
    if failures:
        text += ["## Failed cells", "", *(f"- {cell.name}: {reason}" for cell, reason in failures), ""]
    text += ["## How it was made", "", "```", arguments.command, "```", ""]
    for versions_of, count in used.items():
        text.append(f"- {count} cells: {versions_of}")
    if len(used) > 1:
        text.append("- The cells were made with different versions: compare them with care.")
    if left_over:
        text.append(f"- {left_over} other cells in the folder do not belong to this command and are not in the table.")
    return "\n".join(text) + "\n"


def wide_rows(summaries, rows):
    """Lines of scoreboard.csv."""
    lines = []
    for row in rows:
        line = {"row": row.name, "model": row.model, "strategy": row.strategy}
        for summary in summaries:
            entry, key = summary.entries.get(row.name), f"{summary.task.name} {summary.task.metric}"
            spread = None if entry is None else entry.spread(summary.task.metric)
            line[f"{key} mean"] = "" if entry is None else entry.mean(summary.task.metric)
            line[f"{key} sd"] = "" if spread is None else spread
            line[f"{key} seeds"] = 0 if entry is None else len(entry.seeds)
        lines.append(line)
    return lines


def difference_rows(summaries, reference):
    """Lines of differences.csv; none without a reference."""
    lines = []
    for summary in summaries:
        for name, entry in summary.entries.items():
            if entry.difference is not None:
                found = entry.difference
                (low, high), (seeds_low, seeds_high) = found.interval or ("", ""), found.over_seeds or ("", "")
                lines.append({"task": summary.task.name, "row": name, "reference": reference, "metric": summary.task.metric,
                              "difference": found.mean, "low": low, "high": high, "seeds": found.seeds,
                              "seeds_low": seeds_low, "seeds_high": seeds_high})  # fmt: skip
    return lines


def cell_rows(cells, results, summaries):
    """Lines of cells.csv: every cell, with its numbers or why it has none."""
    tables = {summary.task.name: summary.entries for summary in summaries}
    metrics = list(dict.fromkeys(metric for cell in cells for metric in cell.task.metrics))
    lines = []
    for cell in cells:
        result, entry = results[cell.folder], tables.get(cell.task.name, {}).get(cell.row.name)
        line = {"task": cell.task.name, "row": cell.row.name, "model": cell.row.model, "strategy": cell.row.strategy,
                "seed": cell.seed, "status": result["status"], "seconds": result["seconds"]}  # fmt: skip
        there = entry is not None and cell.seed in entry.seeds and result["status"] == "done"
        for metric in metrics:
            known = there and metric in entry.values
            line[metric] = float(entry.values[metric][entry.seeds.index(cell.seed)]) if known else ""
        lines.append({**line, "reason": result.get("reason", "")})
    return lines


def draw(summaries, rows, path):
    """One panel for each task: means with their 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [row.name for row in rows if any(row.name in summary.entries for summary in summaries)]
    across = min(4, len(summaries))
    down = -(-len(summaries) // across)
    size = (1.2 + 2.6 * across, down * (0.9 + 0.28 * len(names)))
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, sharey=True)
    for axis, summary in zip(axes.flat, summaries):
        for place, name in enumerate(names):
            entry = summary.entries.get(name)
            if entry is None or np.isnan(entry.mean(summary.task.metric)):
                continue
            colour = "#d62728" if name == _best(summary) else "#1f77b4"
            if entry.interval is not None:
                axis.plot(entry.interval, [place, place], color=colour, linewidth=1.2)
            axis.plot(entry.mean(summary.task.metric), place, "o", color=colour, markersize=4)
        axis.set_title(summary.task.heading, fontsize=9)
        axis.set_xlabel(_arrow(summary.task.metric), fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(axis="x", linewidth=0.3)
    for axis in axes.flat[len(summaries) :]:
        axis.set_visible(False)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].set_ylim(len(names) - 0.5, -0.5)
    save_figure(figure, path, dpi=150)

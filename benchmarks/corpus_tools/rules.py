"""Rules that say beforehand which models an engine can't do, found from what became of the corpus.

A rule is an operator and a few facts of a node (`edgepack.node_facts`); it fits a model that has such a node. Covering
(Michalski, 1969; Fürnkranz, "Separate-and-conquer rule learning", 1999): of all rules that fit no model which came out
right, take the one that fits most of those that didn't and that no rule fits yet, and again. Models that are known to
come out right beside the corpus (real ones, whose weights are constants) count as such. A rule with facts needs
`LEAST` models, one without facts (the operator never came out right) a single one.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from corpus_tools import page

from edgepack import operators
from edgepack.node_facts import Described, described

TABLE = Path(operators.__file__).with_name("operators_measured.toml")
HEAD = """\
# Forms of operators that never came out right in the corpus, by engine: written by `benchmarks/corpus.py --rules`.
# A rule fits a node of the operator that has every fact of `when` (see edgepack/node_facts.py); `Model` is the whole.
"""
LEAST = 2
MOST_FACTS = 2


@dataclass(frozen=True)
class Rule:
    """An operator, the facts that a node of it must have, and how many models of the corpus it was found from."""

    op: str
    when: tuple[str, ...]
    models: tuple[str, ...]


def learned(models: Mapping[str, list[Described]], right: Mapping[str, bool]) -> list[Rule]:
    """The rules for one engine; `right` says of each model whether it came out right."""
    bad = {name for name in right if not right[name]}
    candidates: dict[tuple[str, tuple[str, ...]], set[str]] = defaultdict(set)
    spoiled: set[tuple[str, tuple[str, ...]]] = set()
    for name in bad:
        for node in models[name]:
            for key in keys(node):
                candidates[key].add(name)
    for name in right.keys() - bad:
        for node in models[name]:
            spoiled.update(key for key in keys(node) if key in candidates)
    for key in spoiled:
        del candidates[key]
    best: dict[frozenset[str], tuple[str, tuple[str, ...]]] = {}  # of rules that fit the same models
    for key, names in candidates.items():
        same = frozenset(names)
        best[same] = max(best.get(same, key), key, key=preference)
    open_ = set(bad)
    rules = []
    while best:
        fits = max(best, key=lambda names: (len(names & open_), preference(best[names])))
        key, gain = best.pop(fits), fits & open_
        if not gain:
            break
        if len(fits) < LEAST and careful(key[1]) < 0:
            continue
        open_ -= gain
        rules.append(Rule(key[0], key[1], tuple(sorted(fits))))
    return sorted(rules, key=lambda rule: (rule.op, rule.when))


def preference(key: tuple[str, tuple[str, ...]]) -> tuple[int, int, tuple[str, tuple[str, ...]]]:
    """What makes one of two rules that tell as much the better one."""
    return careful(key[1]), -len("".join(key[1])), key


def careful(when: tuple[str, ...]) -> int:
    """Few facts are best; but what a node test computes (weights, axes) is a constant elsewhere: that is said."""
    if len(when) == 1 and when[0].endswith("is computed") and not when[0].startswith("input 0 "):
        return 1
    return -len(when)


def keys(node: Described) -> list[tuple[str, tuple[str, ...]]]:
    """Every rule that fits a node."""
    return _keys(node.op, node.facts)


@functools.cache
def _keys(op: str, facts: frozenset[str]) -> list[tuple[str, tuple[str, ...]]]:
    ordered = sorted(facts)
    return [(op, when) for count in range(MOST_FACTS + 1) for when in combinations(ordered, count)]


def fits(rules: Iterable[Rule], model: list[Described]) -> bool:
    """Whether some rule fits the model."""
    wanted: dict[str, list[frozenset[str]]] = defaultdict(list)
    for rule in rules:
        wanted[rule.op].append(frozenset(rule.when))
    return any(when <= node.facts for node in model for when in wanted.get(node.op, ()))


def agreement(rules: Iterable[Rule], models: Mapping[str, list[Described]], right: Mapping[str, bool]) -> Counter[str]:
    """How many models the rules tell rightly."""
    rules = list(rules)
    return Counter("agree" if fits(rules, models[n]) != right[n] else ("right" if right[n] else "not") for n in right)


def held_out(models: Mapping[str, list[Described]], right: Mapping[str, bool], parts: int) -> float:
    """The share of models told rightly by rules that were found without them."""
    names, agreed = sorted(right), 0
    for part in range(parts):
        test = set(names[part::parts])
        rules = learned(models, {n: right[n] for n in names if n not in test})
        agreed += agreement(rules, models, {n: right[n] for n in test})["agree"]
    return agreed / len(names)


def write(
    results: Mapping[str, Mapping[str, Any]], prepared: Path, engines: Iterable[str], real: Path | None, parts: int
) -> None:
    """Write the table of every engine, and print how well it tells what became of the corpus.

    `parts`: into how many parts the models are cut for a judgement on those held out; 0 for none.
    `real`: a folder of ONNX files, after passes, of models that come out right with every engine.
    """
    names = sorted(name for name in results if (prepared / name / "model").is_dir())
    models = {name: described(prepared / name / "model" / "model.onnx") for name in names}
    known = [path.name for path in sorted(real.glob("*.onnx"))] if real is not None else []
    models |= {name: described(real / name) for name in known if real is not None}
    tables = [HEAD]
    for engine in engines:
        right = {n: results[n][engine]["status"] == "right" for n in names if engine in results[n]}
        right |= dict.fromkeys(known, True)
        found = learned(models, right)
        counts = agreement(found, models, right)
        print(f"{engine}: {len(found)} rules, {dict(counts)}", flush=True)
        if parts:
            print(f"{engine}: of models held out {held_out(models, right, parts):.4f}", flush=True)
        tables += [_entry(engine, rule, results) for rule in found]
    TABLE.write_text("\n".join(tables))


def _entry(engine: str, rule: Rule, results: Mapping[str, Mapping[str, Any]]) -> str:
    reasons = Counter(page.family(results[name][engine]["reason"], 90) for name in rule.models)
    seen = reasons.most_common(1)[0][0].replace("\\", "/").replace('"', "'")
    when = ", ".join(f'"{fact}"' for fact in rule.when)
    return f'[[{engine}]]\nop = "{rule.op}"\nwhen = [{when}]\nseen = "{len(rule.models)} tests of the corpus: {seen}"\n'

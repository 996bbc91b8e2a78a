"""`edgepack check`: what of a model each engine can do, before a build."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click


def command(model_options: Callable[..., Any], plan: Callable[..., Any]) -> click.Command:
    """The command; the options that say what to build, and how they become a plan, are `cli`'s."""

    @click.command()
    @click.argument("model")
    @model_options
    @click.option("--quick", is_flag=True, help="Don't convert: answer from what is known of operators.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    def check(quick: bool, as_json: bool, **options: Any) -> None:
        """Say which engines can do MODEL at which precision, and which operators stand in the way.

        Exit code 3: no variant can be built. Steps that it takes are kept for the build.
        """
        from edgepack import converter, coverage, report
        from edgepack.cache import Cache
        from edgepack.plan import needed_scripts
        from edgepack.resources import cache_root

        chosen = plan(**options)
        for script in sorted(needed_scripts(chosen)):
            converter.environment(script)
        result = coverage.check(chosen, Cache(cache_root()), quick=quick)
        if as_json:
            click.echo(json.dumps(report.document("check", **coverage.content(result)), indent=1, allow_nan=False))
        else:
            click.echo(coverage.text(result))
        if all(row.answer == "no" for row in result.rows):
            raise click.exceptions.Exit(3)

    return check

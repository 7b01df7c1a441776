"""`ouzel model verify`: is an artifact whole, and may it be used?"""

from pathlib import Path
from typing import Annotated

import typer


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The artifact's folder.")],
    *,
    digest: Annotated[str, typer.Option(help="The digest that it must have: sha256:HEX.")] = "",
) -> None:
    """Check every file of an artifact against its manifest, and what it says of itself.

    The first thing that is wrong is said, with exit code 3; a file that cannot be read, with 5. A variant that its gate
    rejected is whole, too: `gate` says so, and `ouzel run` refuses it.

    Example: ouzel model verify models/birds
    """
    from consumer.adapters.labels import load_labels
    from consumer.adapters.models.package import check_artifact
    from consumer.console import print_facts

    found, said = check_artifact(folder, pin=digest)
    names = len(load_labels(folder / said.labels, said.output.classes)) if said.labels else 0
    files = [path for path in folder.rglob("*") if path.is_file()]
    print_facts(
        {
            "result": "ok",
            "digest": found,
            "name": said.name,
            "version": said.version,
            "format": said.format,
            "precision": said.precision,
            "classes": said.output.classes,
            "labels": names,
            "gate": said.gate.status,
            "parent": said.parent or None,
            "files": len(files),
            "bytes": sum(path.stat().st_size for path in files),
        }
    )

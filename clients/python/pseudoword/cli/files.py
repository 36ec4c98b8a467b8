"""`pseudoword export` and `import`: words as files of other programs."""

from pathlib import Path

import click

from pseudoword.cli.connection import Session, connected
from pseudoword.cli.output import write_file


@click.command()
@click.argument("word", metavar="WORD[@ALIAS|@N]")
@click.option(
    "-o", "--output", "path", required=True, type=click.Path(path_type=Path, dir_okay=False), help="File to write."
)
@connected
def export(session: Session, *, word: str, path: Path) -> None:
    """Write a word as a safetensors file in the layout that diffusers' load_textual_inversion reads."""
    version = session.client.resolve(word)
    embedding = session.client.embedding(version.name)
    write_file(path, embedding.data)
    record = {"file": str(path), "version": version.name, "tensors_digest": version.tensors_digest}
    session.output.result(record, f"{path}  ({version.name})")


@click.command("import")
@click.argument("concept")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--description", default="", show_default=False, metavar="TEXT", help="Description of the version.")
@connected
def import_(session: Session, *, concept: str, path: Path, description: str) -> None:
    """Publish FILE, a word learned by another program, as the next version of CONCEPT."""
    version = session.client.import_version(concept, path.read_bytes(), description=description)
    session.output.result(version, version.name)

"""The licences of what can be fetched, as a table for `docs/licences.md` and model cards.

Print the table with `python -m seed_jax.hub.licences`.
"""

from collections.abc import Iterable

from seed_jax.hub.manifest import Artefact, load_manifest

_COLUMNS = ("artefact", "what", "licence", "confidence", "gated", "from")


def licence_table(artefacts: Iterable[Artefact]) -> str:
    """Return a Markdown table with one line an artefact."""
    rows = [_COLUMNS, tuple("---" for _ in _COLUMNS)]
    for artefact in artefacts:
        origin = artefact.sources[0] if artefact.sources else None
        rows.append(
            (
                f"`{artefact.name}`",
                artefact.title,
                artefact.licence,
                artefact.licence_confidence,
                artefact.gated,
                origin.where if origin else "not published",
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(licence_table(load_manifest().artefacts.values()))

"""The licences of what can be fetched, and what is unconfirmed about it, as tables for `docs/licences.md`.

Print the tables with `python -m seed_jax.hub.licences`.
"""

from collections.abc import Iterable

from seed_jax.hub.manifest import UNKNOWN, Artefact, load_manifest

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


def unconfirmed_table(artefacts: Iterable[Artefact]) -> str:
    """Return a Markdown table with one line per artefact of which something could not be confirmed."""
    rows = [("artefact", "not confirmed"), ("---", "---")]
    rows += [(f"`{artefact.name}`", "; ".join(facts)) for artefact in artefacts if (facts := unconfirmed(artefact))]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def unconfirmed(artefact: Artefact) -> list[str]:
    """Return what no source states about an artefact itself, or what only copies of it state."""
    facts = []
    if artefact.licence_confidence != "confirmed":
        facts.append(f"licence ({artefact.licence_confidence})")
    if artefact.gated == UNKNOWN:
        facts.append("gate")
    facts += [
        f"source {source.where} ({source.confidence})"
        for source in artefact.sources
        if source.confidence != "confirmed"
    ]
    files = artefact.files
    groups = {
        "no SHA-256": [file for file in files if file.sha256 is None],
        "leading digits of the SHA-256 only": [file for file in files if file.sha256 and len(file.sha256) < 64],
        "SHA-256 of a copy": [file for file in files if file.sha256 and file.confidence == "copy"],
        "not seen in a list of files": [file for file in files if file.size is None],
    }
    for what, concerned in groups.items():
        if concerned:
            facts.append(f"{what}: {', '.join(file.path for file in concerned)}")
    return facts


if __name__ == "__main__":
    listed = load_manifest().artefacts.values()
    print(f"{licence_table(listed)}\n\n{unconfirmed_table(listed)}")

from pathlib import Path

from seed_jax.hub.licences import licence_table, unconfirmed, unconfirmed_table
from seed_jax.hub.manifest import load_manifest

PAGE = Path(__file__).parents[2] / "docs/licences.md"


def test_the_page_has_the_licence_of_every_artefact():
    table = licence_table(load_manifest().artefacts.values())
    assert len(table.splitlines()) == len(load_manifest().artefacts) + 2
    assert table in PAGE.read_text(encoding="utf-8"), "run `python -m seed_jax.hub.licences` and replace the table"


def test_the_page_lists_what_is_unconfirmed():
    artefacts = load_manifest().artefacts
    assert unconfirmed_table(artefacts.values()) in PAGE.read_text(encoding="utf-8"), (
        "run `python -m seed_jax.hub.licences` and replace the table"
    )
    assert unconfirmed(artefacts["seed-quantizer"]) == []
    assert any("licence" in fact for fact in unconfirmed(artefacts["vicuna-7b-v1.1"]))

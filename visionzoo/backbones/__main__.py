"""``python -m visionzoo.backbones``: describe every registered backbone anew, and write that to ``facts.json``."""

from visionzoo.backbones import list_backbones
from visionzoo.facts import FACTS_FILE, info_to_dict
from visionzoo.files import write_json
from visionzoo.registry import measure_backbone


def main() -> None:
    """Measure every registered backbone and write ``facts.json``."""
    names = list_backbones()
    write_json(FACTS_FILE, {name: info_to_dict(measure_backbone(name)) for name in names})
    print(f"{FACTS_FILE.name}: {len(names)} backbones")


if __name__ == "__main__":
    main()

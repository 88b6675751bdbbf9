"""All that a run serves beside its checkpoints: predictions, post-processors, students, compressed copies."""

from __future__ import annotations

from dataclasses import replace

from fairsisa.runs.assembly import Assembly
from fairsisa.runs.descendants import descended
from fairsisa.runs.directory import Ensemble
from fairsisa.runs.fitting import refitted
from fairsisa.runs.making import Workplace, publishable
from fairsisa.runs.networks import Origin
from fairsisa.tables import Examples


def completed(assembly: Assembly, place: Workplace, examples: Examples) -> Ensemble:
    """Return the ensemble that a run is to publish; what the store lacks of it is made, each after its parents."""
    ensemble = refitted(place.run, publishable(assembly, place), examples)
    before = place.run.pointer.descendants
    return replace(ensemble, descendants=descended(Origin(place, assembly, ensemble, examples), before))

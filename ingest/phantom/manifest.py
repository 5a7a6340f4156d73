"""`retinal_oct/manifest.tsv`: one row per volume, as the cohort's documents describe it."""

from typing import Final

from ingest.phantom.header import HeaderSpec
from shards.schema import Shape

NOT_REPORTED: Final = "Not reported"
VARIES: Final = "Varies by frame"


def manifest_cells(header: HeaderSpec, shape: Shape, path: str) -> dict[str, str]:
    """A row of the manifest; `filepath` starts with a slash, spacing is text such as `[0.0026, 0.01171875]`."""
    axial, lateral = header.spacing_mm
    thickness = header.slice_thickness_mm
    photograph = f"/retinal_photography/ir/{header.device}/{header.participant_id}/{header.uids.localizer}.dcm"
    return {
        "person_id": header.participant_id,
        "manufacturer": header.manufacturer,
        "manufacturers_model_name": header.model,
        "anatomic_region": header.anatomic_region,
        "imaging": "OCT",
        "laterality": header.laterality,
        "height": str(shape[1]),
        "width": str(shape[2]),
        "number_of_frames": str(shape[0]),
        "pixel_spacing": f"[{axial:.9g}, {lateral:.9g}]" if header.shared_measures else VARIES,
        "slice_thickness": NOT_REPORTED if thickness is None else f"{thickness:.9g}",
        "sop_instance_uid": header.uids.sop_instance,
        "filepath": f"/{path}",
        "reference_instance_uid": header.uids.localizer,
        "reference_filepath": photograph,
    }

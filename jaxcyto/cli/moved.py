"""Map the module names from before version 0.2 to the current ones, for error messages."""

import ast
from importlib import import_module

# old module (or module:name, where only that name has moved) -> new module, below jaxcyto
MOVED = {
    "annotations": "data.segment_table",
    "brain.anchors": "brain.geodesics.landmarks",
    "brain.annot": "brain.surfaces.vertex_labels",
    "brain.annotate": "brain.annotation.polygons",
    "brain.annotated": "brain.sections.label_image",
    "brain.atlas_images": "brain.sections.atlas_image",
    "brain.carry": "brain.annotation.surface_labels",
    "brain.check_results": "brain.sampling.consistency",
    "brain.curves": "explore.ribbon_walk",
    "brain.cutter": "brain.sampling.section_ribbons",
    "brain.even": "brain.sampling.pair_sampling",
    "brain.files": "utils.files",
    "brain.folder": "utils.files",
    "brain.geojson": "brain.annotation.geojson",
    "brain.gifti": "brain.surfaces.gifti",
    "brain.image_column": "brain.annotation.image_column",
    "brain.inflate": "brain.surfaces.smoothing",
    "brain.label_images": "brain.sections.label_image",
    "brain.labels": "brain.surfaces.vertex_labels",
    "brain.matrix_file": "utils.matrix_file",
    "brain.mesh": "brain.geodesics.mesh",
    "brain.mni_obj": "brain.surfaces.formats",
    "brain.oracle": "brain.geodesics.oracle",
    "brain.oracle_build": "brain.geodesics.oracle_build",
    "brain.pairing": "brain.sampling.pairing",
    "brain.pairs": "brain.sampling.pairs",
    "brain.patches": "brain.sampling.patches",
    "brain.phantom": "phantom.make",
    "brain.phantom_cells": "phantom.cells",
    "brain.phantom_label": "phantom.annotation",
    "brain.phantom_look": "phantom.acquisition",
    "brain.phantom_paint": "phantom.paint",
    "brain.phantom_plan": "phantom.settings",
    "brain.phantom_real": "phantom.given_surfaces",
    "brain.phantom_shape": "phantom.cortex",
    "brain.phantom_write": "phantom.writer",
    "brain.prism_cut": "brain.annotation.prisms",
    "brain.progress": "utils.progress",
    "brain.resample": "brain.sections.resample",
    "brain.ribbon": "brain.sampling.ribbon",
    "brain.sampling": "brain.sampling.sampling",
    "brain.scanline": "brain.annotation.scanline",
    "brain.section_writer": "brain.sections.writer",
    "brain.sections": "brain.sections.section",
    "brain.solve": "brain.geodesics.solvers",
    "brain.source_fields": "brain.geodesics.single_source",
    "brain.splits": "brain.sampling.splits",
    "brain.stamp": "utils.unchanged",
    "brain.surface_figure": "brain.figures",
    "brain.surface_files": "brain.surfaces.formats",
    "brain.surface_smoothing": "brain.surfaces.smoothing",
    "brain.surfaces": "brain.surfaces.surface",
    "brain.tiff_grey": "brain.sections.gray",
    "brain.tiff_level": "brain.sections.tiff",
    "brain.tiff_pages": "brain.sections.headers",
    "brain.vertex_maps": "brain.surfaces.vertex_maps",
    "brain.ways": "brain.geodesics.oracle",
    "brain.workers": "utils.processes",
    "cli": "cli.root",
    "cli_command": "cli.options",
    "cli_explore": "cli.explore",
    "cli_export": "cli.export",
    "cli_report": "cli.export",
    "cli_segment": "cli.segment",
    "compilation": "utils.runtime",
    "evaluate": "predict.evaluate",
    "explore": "explore.run",
    "explore_plot": "explore.figures",
    "export": "runs.export",
    "export_file": "runs.export_file",
    "faults": "data.skipping",
    "features": "predict.features",
    "input": "data.pair_batches",
    "metrics_file": "runs.metrics_file",
    "model_card": "runs.model_card",
    "models.conv": "models.layers",
    "models.cpu": "models.cpu.kernels",
    "models.ffi": "models.cpu.ffi",
    "models.norm": "models.layers",
    "models.onednn": "models.cpu.onednn",
    "models.pool": "models.layers",
    "neighbors": "explore.border_contrast",
    "neighbors_plot": "explore.figures",
    "pair_predictions": "runs.pair_predictions",
    "pair_table": "data.pair_table",
    "patch_table": "explore.patch_table",
    "plots": "plots.common",
    "predict.memory": "predict.predictor",
    "predict.task": "predict.section_jobs",
    "probes": "explore.probes",
    "runs": "runs.load",
    "segment_input": "data.segment_batches",
    "segment_plots": "plots.segmentation",
    "training.checkpoint": "training.state.checkpoint",
    "training.distributed": "training.devices.distributed",
    "training.host": "utils.runtime",
    "training.optim": "training.state.optim",
    "training.parallel": "training.devices.parallel",
    "training.record": "runs.record",
    "training.resident": "training.devices.on_device",
    "training.state": "training.state.state",
    "training.stop": "training.signals",
    "training.transfer": "training.state.transfer",
    "windows": "data.windows",
    "brain.pairing:draw_pairs": "brain.sampling.pair_sampling",
    "brain.phantom:PRESETS": "phantom.settings",
    "config:differences": "config_io",
    "config:field_paths": "config_io",
    "config:scales_from_json": "config_io",
    "config:to_json": "config_io",
    "input:iterate": "data.loading",
    "input:mean_and_std": "data.loading",
    "plots:predicted_coordinates": "plots.pretext",
    "plots:predicted_distance": "plots.pretext",
    "plots:pretext_figures": "plots.pretext",
    "plots:sample_pairs": "plots.pretext",
}


def new_name(error: BaseException, source: str = "") -> str | None:
    """Return what to import instead if an import failed because its target has moved.

    Args:
        error: any error that a config file has raised.
        source: the statement that has raised it, which tells the names that it imports.

    Returns:
        A message with the old and the new name, or None if the error has another cause.
    """
    if not isinstance(error, ImportError) or not f"{error.name}.".startswith("jaxcyto."):
        return None
    module, name = str(error.name).removeprefix("jaxcyto").lstrip("."), error.name_from
    if name:
        old = f"{module}.{name}".lstrip(".")
        new = MOVED.get(old) or MOVED.get(f"{module}:{name}")
        if new is None and module in MOVED and _holds(MOVED[module], name):
            new = MOVED[module]
        return new and f"jaxcyto.{old} has moved: import it from jaxcyto.{new}"
    if module not in MOVED:
        return None
    places: dict[str, list[str]] = {}
    for each in _imported_names(source):
        new = MOVED.get(f"{module}:{each}", MOVED[module])
        places.setdefault(new, []).append(each if _holds(new, each) else f"{each} (renamed)")
    if not places:
        return f"jaxcyto.{module} has moved: import it from jaxcyto.{MOVED[module]}"
    parts = (f"{', '.join(names)} from jaxcyto.{new}" for new, names in places.items())
    return f"jaxcyto.{module} has moved: import {' and '.join(parts)}"


def _holds(module: str, name: str) -> bool:
    """Return whether a module of this version has a name."""
    try:
        return hasattr(import_module(f"jaxcyto.{module}"), name)
    except ImportError:
        return False


def _imported_names(source: str) -> list[str]:
    """Return the names that a statement `from ... import ...` asks for, without "*"."""
    try:
        nodes = ast.parse(source.strip()).body
    except SyntaxError:
        return []
    names = [
        alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    return [name for name in names if name != "*"]

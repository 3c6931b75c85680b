"""The published service's configuration, for callers that make one: what it says, in our settings."""

from dataclasses import dataclass, fields

from .settings import WorkerSettings

_TAKEN = ("bundle_source", "bundle_registry", "bundles_dir", "venvs_dir", "max_warm_processes")


@dataclass
class RuntimeConfig:
    """Fields as the published class has them. What this service has no place for is refused, never dropped.

    Without `venvs_dir` and `max_warm_processes` the worker's own settings apply; the published defaults are folders in
    /tmp and 128 processes.
    """

    bundle_source: str = "oci"
    bundle_registry: str | None = None
    bundles_dir: str | None = None
    venvs_dir: str | None = None
    max_warm_processes: int | None = None
    executor_type: str = "isolated_warm"
    force_fresh_venv: bool = False
    validate_deps_on_reuse: bool = True
    cas_backend: str = "memory"

    def worker_settings(self) -> WorkerSettings:
        """The same for our workers. ValueError for a field that they can't obey."""
        for field in fields(self):
            if field.name not in _TAKEN and getattr(self, field.name) != field.default:
                problem = f"{field.name}={getattr(self, field.name)!r} can't be obeyed here"
                raise ValueError(f"{problem}; MODELOPS_COLD_DEBUG=1 on the worker gives every task an environment anew")
        place = {"oci": "bundle_registry", "file": "bundles_dir"}.get(self.bundle_source)
        if place is None:
            raise ValueError(f"bundle_source={self.bundle_source!r}: set MODELOPS_BUNDLE_SOURCE on the worker instead")
        if not getattr(self, place):
            raise ValueError(f"bundle_source={self.bundle_source!r} needs {place}")
        return WorkerSettings(
            bundle_repository=self.bundles_dir if self.bundle_source == "file" else None,
            bundle_registry=self.bundle_registry if self.bundle_source == "oci" else None,
            venvs_dir=self.venvs_dir,
            max_servers=self.max_warm_processes,
        )

"""Use the parts of JAX that are private. Only jobs of several processes import this file.

The public API can start JAX's coordination service, but it gives no access to the key-value store
of the service, and it does not tell whether it would detect a cluster.
"""

import logging
from typing import Any

import jax

from jaxcyto.errors import InputError

TESTED = "0.11 to 0.12"  # versions of JAX
TPU_PODS = ("gketpu", "gcetpu")  # JAX's names of the clusters

logger = logging.getLogger("jaxcyto")


def _untested(error: Exception) -> InputError:
    return InputError(
        f"jobs of several processes use private parts of JAX that version {jax.__version__} does "
        f"not have ({error}). They were tested with JAX {TESTED}: install one of these versions, "
        "or train in one process (--processes 1)"
    )


def key_value_store() -> Any:
    """Return the client of the key-value store of this job.

    Raises:
        InputError: this version of JAX keeps it elsewhere.
    """
    try:
        from jax._src import distributed

        client: Any = distributed.global_state.client
        for name in ("key_value_set", "key_value_dir_get", "blocking_key_value_get"):
            getattr(client, name)
    except (ImportError, AttributeError) as error:
        raise _untested(error) from None
    return client


def on_tpu_pod() -> bool:
    """Return whether this process is one of several on a TPU pod, as JAX detects it.

    Raises:
        InputError: this version of JAX detects clusters elsewhere.
    """
    try:
        from jax._src import clusters

        kinds = [kind for kind in clusters.ClusterEnv._cluster_types if kind.name in TPU_PODS]
        for kind in kinds:
            for name in ("is_env_present", "get_process_count"):
                getattr(kind, name)
    except (ImportError, AttributeError) as error:
        raise _untested(error) from None
    for kind in kinds:
        try:
            if kind.is_env_present():
                return kind.get_process_count() > 1
        except Exception as error:  # for example, a TPU outside of Google Cloud without metadata
            logger.debug("%s: %s", kind.name, error)
    return False

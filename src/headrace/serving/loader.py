"""Load and free models beside those that answer: in a thread that nobody has to wait for."""

import gc
from typing import Final

from headrace.core import ReplicaSettings
from headrace.scoring.loading import LoadedModel, load_model
from headrace.serving.daemon import in_daemon_thread
from headrace.serving.memory import give_back

WARM_UP_S: Final = 0.2
"""Less than where nobody waits for it: the engine learns while it serves."""


class ThreadLoader:
    """What loads a pool's models in its own process."""

    async def load(self, settings: ReplicaSettings) -> LoadedModel:
        """Load a model that was tried before; cancelled, the result is freed when it comes.

        Raises:
            HeadraceError: It cannot be loaded.
        """
        return await in_daemon_thread(
            lambda: load_model(settings, warm_up_s=WARM_UP_S), name="load", dispose=_free
        )

    async def free(self, loaded: LoadedModel) -> None:
        """Close a model and give its memory back to the system."""
        await in_daemon_thread(lambda: _free(loaded), name="free", dispose=_nothing)


def _free(loaded: LoadedModel) -> None:
    loaded.model.close()
    gc.collect()  # a user's module and its functions refer to each other
    give_back()


def _nothing(_: None) -> None:
    """For a result that holds nothing."""

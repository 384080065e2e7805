"""Which generation of an endpoint may it go back to?"""

from pathlib import Path
from typing import Final

from headrace.control.aims import same_endpoint
from headrace.control.desired import DesiredEndpoint
from headrace.control.state.records import EndpointGeneration
from headrace.control.state.store import Store
from headrace.core import FailedPreconditionError, ModelNotFoundError, NotFoundError
from headrace.rollout.state import Phase

_MOST_SEARCHED: Final = 1000


async def former(store: Store, name: str, generation: int | None) -> EndpointGeneration:
    """What `name` was in `generation`; None for the newest that served something else than now.

    Raises:
        NotFoundError: There is no such generation.
        FailedPreconditionError: It never served anything else.
    """
    if generation is None:
        return await _served_before(store, name)
    found = await store.generation(name, generation)
    if found is None:
        known = await store.history(name, limit=1)
        there = f"the newest is {known[0].generation}" if known else "there is no such endpoint"
        raise NotFoundError(f"endpoint '{name}' has no generation {generation}; {there}")
    return found


async def _served_before(store: Store, name: str) -> EndpointGeneration:
    """The newest generation that served something else than what is asked for now.

    One that a rollout held back never served, so it is none to go back to.
    """
    history = await store.history(name, limit=_MOST_SEARCHED)
    if not history:
        raise ModelNotFoundError(name)
    rollouts = await store.rollouts(name, limit=_MOST_SEARCHED)
    held_back = {
        record.target.generation for record in rollouts if record.state.phase is not Phase.PROMOTED
    }
    newest = history[0]
    for entry in history[1:]:
        is_same = same_endpoint(entry.endpoint, newest.endpoint)
        is_other = newest.generation in held_back or not is_same
        if is_other and entry.generation not in held_back:
            return entry
    message = f"endpoint '{name}' never served anything else; there is nothing to undo"
    raise FailedPreconditionError(message)


def check_there(endpoint: DesiredEndpoint) -> None:
    """Raise FailedPreconditionError if a model's files are gone."""
    for arm in endpoint.arms:
        settings = arm.revision.settings
        if arm.revision.upstream is None and not Path(settings.path).exists():
            message = f"model {arm.revision.model} of that generation is gone from the registry"
            raise FailedPreconditionError(message)

"""Which ids has what runs already? A former release gave others to the same, and they stay.

Ids once had the home's path in them. If the same got its new id at the next apply, all replicas
would be replaced, and rollouts begun, for nothing. So a revision keeps its id for as long as it is
the same.
"""

from collections.abc import Iterable, Iterator

import msgspec

from headrace.control.desired import DesiredArm, DesiredEndpoint, DesiredState, Revision, remake
from headrace.control.state.records import RolloutRecord


def with_known_ids(
    endpoints: Iterable[DesiredEndpoint],
    desired: DesiredState,
    rollouts: Iterable[RolloutRecord] = (),
) -> tuple[DesiredEndpoint, ...]:
    """`endpoints`, with the id that each revision has in `desired` or `rollouts` if it is there."""
    known: dict[str, list[Revision]] = {}
    former = (one for record in rollouts for one in (record.source, record.target))
    for endpoint in (*desired.endpoints, *former):
        known.setdefault(endpoint.name, []).extend(arm.revision for arm in endpoint.arms)
    return tuple(
        msgspec.structs.replace(
            endpoint, arms=tuple(_arms(endpoint.arms, known.get(endpoint.name, [])))
        )
        for endpoint in endpoints
    )


def _arms(arms: Iterable[DesiredArm], known: list[Revision]) -> Iterator[DesiredArm]:
    for arm in arms:
        ids = [one.id for one in known if is_same(one, arm.revision)]
        if not ids or arm.revision.id in ids:
            yield arm
        else:
            revision = msgspec.structs.replace(arm.revision, id=ids[0])
            yield msgspec.structs.replace(arm, revision=revision)


def is_same(known: Revision, new: Revision) -> bool:
    """Whether `known` would be called what `new` is, were it made now.

    Of a model that is served where it lies a former release noted no content: then its place says
    that it is the same.
    """
    if known.id == new.id:
        return True
    if known.upstream is not None or new.upstream is not None:
        return False  # no machine's paths were ever in theirs
    expected = new if known.content else remake(msgspec.structs.replace(new, content=""))
    return remake(known).id == expected.id

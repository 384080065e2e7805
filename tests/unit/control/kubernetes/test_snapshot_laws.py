"""The snapshot ends at the cluster's truth, however events and own answers interleave."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from headrace.control.kubernetes.names import Object
from headrace.control.kubernetes.snapshot import ClusterSnapshot


@dataclass
class Course:
    """Pods on a server and their events, our answers on the way, and the snapshot."""

    objects: dict[str, Object] = field(default_factory=dict)
    events: list[tuple[str, Object]] = field(default_factory=list)
    answers: list[tuple[str, Object]] = field(default_factory=list)
    watched: int = 0
    cluster: ClusterSnapshot = field(default_factory=ClusterSnapshot)

    def take(self, change: str, obj: Object) -> None:
        (self.cluster.drop if change == "DELETED" else self.cluster.put)(obj)

    def write(self, name: str) -> None:
        version = str(len(self.events) + 1)
        before = self.objects.get(name)
        uid = before["metadata"]["uid"] if before else f"u{version}"
        metadata = {"name": name, "uid": uid, "resourceVersion": version}
        self.objects[name] = {"kind": "Pod", "metadata": metadata}
        self.events.append(("PUT", self.objects[name]))

    def delete(self, name: str) -> None:
        if (obj := self.objects.pop(name, None)) is not None:
            version = str(len(self.events) + 1)
            metadata = {**obj["metadata"], "resourceVersion": version}
            self.events.append(("DELETED", {**obj, "metadata": metadata}))

    def read(self, name: str) -> None:
        if name in self.objects:
            self.answers.append(("PUT", self.objects[name]))

    def own_write(self, name: str) -> None:
        self.write(name)
        self.read(name)

    def own_delete(self, name: str) -> None:
        if name in self.objects:
            self.answers.append(("DELETED", self.objects[name]))
            self.delete(name)

    def answer(self, name: str) -> None:
        if self.answers:
            self.take(*self.answers.pop(0 if name == "a" else -1))

    def event(self, _: str) -> None:
        if self.watched < len(self.events):
            self.take(*self.events[self.watched])
            self.watched += 1
            self.cluster.reach("Pod", str(self.watched))

    def list(self, _: str) -> None:
        self.watched = len(self.events)
        self.cluster.replace_all("Pod", self.objects.values(), str(self.watched))


steps = st.sampled_from(
    [
        Course.write,
        Course.delete,
        Course.read,
        Course.own_write,
        Course.own_delete,
        Course.answer,
        Course.event,
        Course.list,
    ]
)


@given(steps=st.lists(st.tuples(steps, st.sampled_from("ab")), max_size=60), ends=st.booleans())
def test_any_interleaving_of_events_and_own_answers_ends_in_the_truth(
    steps: list[tuple[object, str]], *, ends: bool
) -> None:
    course = Course()
    for step, name in steps:
        step(course, name)  # type: ignore[operator]  # a method of it
    for step in (Course.event, Course.answer) if ends else (Course.answer, Course.event):
        while course.answers if step == Course.answer else course.watched < len(course.events):
            step(course, "a")

    assert course.cluster.objects == {("Pod", name): pod for name, pod in course.objects.items()}

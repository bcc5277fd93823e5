"""The nodes of a run, which train it together: pods of one Job, each with the same number of ranks. Torch-free.

Node 0 does all that a run does beside training (checks, rows, checkpoints, publishing); the others lend it their
devices. They meet at a store that node 0 keeps at one address of its own. Each node writes there that it is alive, and
how its ranks have ended, so every node ends within a minute of any other, and says which rank of which node was first.
A network may lose the connections between the ranks alone: each node watches its own, and says which have gone silent.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llm_tuning.core.stopping import raise_if_stopped
from llm_tuning.errors import EXIT_TRY_AGAIN, TryAgain
from llm_tuning.run.awake import AwakeClock
from llm_tuning.run.connections import Connections
from llm_tuning.run.rank import RankFailure

log = logging.getLogger(__name__)

JOIN_SECONDS = 45.0
"""For a node whose host is known to be there, for the last rank to come to connect after the first, and for all
to connect then: a run is to end within a minute, of which the end of ranks that hang takes ten seconds.

From the first rank to the last is how much longer one takes to import torch and to open its GPU. That is some seconds;
ranks on one busy machine are late together, and one that alone reads its image from a cold disk is tens of seconds
behind. A rank that is later yet costs a retry, which finds its files in memory.
"""
LOST_SECONDS = 30.0
"""A node that has written nothing for so long is lost, and so is a connection on which nothing was acknowledged. Two
ranks in a collective cannot tell that from a slow one. What is cut for less is made up for by TCP."""
BEAT_SECONDS = 1.0
LINGER_SECONDS = 10.0
"""How long node 0 keeps the store for the others to read how it ended."""
THREAD_SECONDS = 2.0
"""For the thread to end: a store that the network has lost keeps it for ever."""
CONNECT_SECONDS = 5.0
POLL_SECONDS = 0.2
NAMED = 4
"""How many of many a message names."""

MISSING, LOST = "NodeMissing", "NodeLost"


@dataclass(frozen=True)
class Nodes:
    """The nodes of a run as one of them sees them."""

    index: int
    """Which of them this is."""
    hosts: tuple[str, ...]
    """Under which name each is reached by the others."""
    ranks: int
    """Of each node."""
    address: str
    """Of this node: node 0 listens there and nowhere else."""
    port: int
    attempt: str = ""
    """What only the nodes of this start have: those of an earlier one may answer under the same names for a while."""

    @property
    def world(self) -> int:
        return self.ranks * len(self.hosts)

    @property
    def others(self) -> list[int]:
        return [node for node in range(len(self.hosts)) if node != self.index]

    def own_ranks(self, node: int) -> range:
        return range(node * self.ranks, (node + 1) * self.ranks)

    def of_rank(self, rank: int) -> str:
        return name_rank(rank, self.world, self.hosts)

    def of_node(self, node: int) -> str:
        """Name the ranks of a node: `ranks 2 to 3 of 4 on node 1 (faq-train-1)`."""
        ranks = self.own_ranks(node)
        if len(ranks) == 1:
            return self.of_rank(ranks[0])
        return f"ranks {ranks[0]} to {ranks[-1]} of {self.world} on {self.name(node)}"

    def of_ranks(self, ranks: Sequence[int]) -> str:
        """Name several ranks, those of a whole node together and of many the first."""
        named: list[tuple[str, int]] = []
        for node in range(len(self.hosts)):
            own = [rank for rank in self.own_ranks(node) if rank in ranks]
            named += [(self.of_node(node), len(own))] if len(own) == self.ranks else [(self.of_rank(r), 1) for r in own]
        names = [name for name, _ in named[:NAMED]]
        if more := sum(count for _, count in named[NAMED:]):
            names.append(f"{more} more rank{'s' if more > 1 else ''}")
        return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

    def name(self, node: int) -> str:
        return f"node {node} ({self.hosts[node]})"


def name_rank(rank: int, world: int, hosts: Sequence[str] = ()) -> str:
    """Name a rank: `rank 3 of 4 on node 1 (faq-train-1)`, without `hosts` `rank 3 of 4`."""
    if not hosts:
        return f"rank {rank} of {world}"
    node = rank * len(hosts) // world
    return f"rank {rank} of {world} on node {node} ({hosts[node]})"


class NodeGroup:
    """The nodes while they are together: a context in which this one is alive to the others.

    What ends it is told to them: an error on one node ends all.
    """

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.store_address = nodes.address
        """Of node 0, as this node reaches it."""
        self._server: Any = None
        self._store: Any = None
        self._thread = threading.Thread()
        self._over = threading.Event()
        self._beats: dict[int, bytes] = {}
        self._heard: dict[int, float] = {}
        """When each other node was seen to write last."""
        self._ends: dict[int, dict[str, Any]] = {}
        """What the other nodes have said of their end."""
        self._connections = Connections()
        self._clock = AwakeClock()
        """Of all that is waited for: nodes that were frozen together find each other alive as they wake."""
        self._silence = ""
        """Between which nodes connections have gone silent, by whichever of the two has found it."""
        self._work: Path | None = None
        self._looked = self._clock.now()
        """When the store answered last."""
        self._broken = False
        self._fault: RuntimeError | None = None
        """Why this node watches the others no more, where that is its own fault."""
        self._unstarted = list(range(len(nodes.hosts)))
        """Nodes that have not come to start their ranks."""
        self._first_at: float | None = None
        """When the first rank had begun to connect, for which the others have to come."""
        self._unbegun = list(range(nodes.world))
        """Ranks that have not begun to connect."""
        self._begun_at: float | None = None
        """When all ranks had begun to connect."""
        self._unconnected = list(range(nodes.world))
        self._said = False

    def __enter__(self) -> Self:
        from llm_tuning.trainers.parallel import connect_store, serve_store

        nodes = self.nodes
        if nodes.index == 0:
            self._server = serve_store(nodes.address, nodes.port)
        else:
            self.store_address = self._reach_node_0()
        self._store, beating = (connect_store(self.store_address, nodes.port) for _ in range(2))
        if nodes.index == 0:
            self._store.set(self._mark, "")
        self._looked = self._clock.now()
        self._thread = threading.Thread(target=self._beat, args=[beating], name="nodes", daemon=True)
        self._thread.start()
        log.info("%s of %d is there", nodes.name(nodes.index), len(nodes.hosts))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._said:
            self._say_end({}, "" if error is None else getattr(error, "message", str(error)))
        deadline = time.monotonic() + LINGER_SECONDS
        while self.nodes.index == 0 and self._is_awaited() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._over.set()
        self._thread.join(THREAD_SECONDS)

    # --- meeting ----------------------------------------------------------------------------------------------------

    def await_others(self) -> None:
        """Wait on node 0 until all are there; raises TryAgain where one whose host is known does not come.

        A host that no name server knows is a pod that does not run yet, which Kubernetes tells the reason of.
        """
        since: float | None = None
        while missing := [node for node in self.nodes.others if node not in self._heard]:
            raise_if_stopped("before all nodes were there")
            if (trouble := self.find_trouble()) is not None:
                raise trouble
            are_known = all(_is_known(self.nodes.hosts[node]) for node in missing)
            since = (since or self._clock.now()) if are_known else None
            if self._should_have_come(since):
                raise TryAgain(
                    MISSING,
                    f"{self.nodes.of_node(missing[0])} has not come within {JOIN_SECONDS:.0f} s: it does not reach "
                    f"{self.nodes.name(0)} at port {self.nodes.port}, or hangs as it starts; see its log, and whether "
                    "NetworkPolicies let the pods of this run reach each other",
                )
            time.sleep(POLL_SECONDS)

    @property
    def _mark(self) -> str:
        """What the store of this start has."""
        return f"attempt/{self.nodes.attempt}"

    def _reach_node_0(self) -> str:
        """Wait for the store of node 0; returns its address, which no name server is asked for again."""
        from llm_tuning.trainers.parallel import connect_store

        host, port = self.nodes.hosts[0], self.nodes.port
        since: float | None = None
        while True:
            raise_if_stopped("before all nodes were there")
            try:
                with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
                    address = str(connection.getpeername()[0])
                if connect_store(address, port).check([self._mark]):
                    return address
                cause = "what answers there belongs to another start of this run"
                since = since or self._clock.now()
            except RuntimeError:  # torch's errors of a store
                cause = "what answers there is no store"
                since = since or self._clock.now()
            except OSError as error:
                cause = error.strerror or str(error)
                is_known = not isinstance(error, socket.gaierror) or _is_known(host)
                since = (since or self._clock.now()) if is_known else None
            if self._should_have_come(since):
                raise TryAgain(
                    MISSING,
                    f"{self.nodes.of_node(0)} cannot be reached from {self.nodes.name(self.nodes.index)} at "
                    f"port {port} within {JOIN_SECONDS:.0f} s: {cause}; see its log, and whether NetworkPolicies let "
                    "the pods of this run reach each other",
                )
            time.sleep(POLL_SECONDS)

    # --- what node 0 hands on ---------------------------------------------------------------------------------------

    def hand_on(self, work: Path) -> None:
        """Tell the other nodes, from node 0, that the ranks begin, and in which work folder."""
        self._store.set("work", str(work))

    def await_work(self, is_finished: Callable[[], bool]) -> Path | None:
        """Wait on another node for the ranks to begin; None where the run was finished before that."""
        while True:
            raise_if_stopped("before the ranks began")
            if self._work is not None:
                return self._work
            if is_finished():
                return None
            if (trouble := self.find_trouble()) is not None:
                raise trouble
            time.sleep(POLL_SECONDS)

    # --- while the ranks run ----------------------------------------------------------------------------------------

    def find_trouble(self) -> RuntimeError | None:
        """Return why the ranks of this node are of no use any more, or None.

        That is TryAgain where another node has failed or is lost, and otherwise a fault of this one.
        """
        if self._fault is not None:
            return self._fault
        for node in self.nodes.others:
            end = self._ends.get(node)
            if end is not None and (end["failures"] or end["message"]):
                said = end["message"] or "its ranks have failed"
                return TryAgain(LOST, f"{self.nodes.name(node)} has ended: {said}")
            if end is None and self._is_lost(node):
                return self._lost(node)
        return self._find_apart()

    def await_trouble(self) -> RuntimeError | None:
        """Return what `find_trouble` finds in some seconds, or None."""
        deadline = time.monotonic() + LINGER_SECONDS
        while (trouble := self.find_trouble()) is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return trouble

    def say_it_starts(self) -> None:
        """Tell the other nodes that this one has come to start its ranks."""
        self._store.set(f"starting/{self.nodes.index}", "")

    def find_unstarted(self) -> TryAgain | None:
        """Return what to say where ranks were waited for in vain, as a node has not come to start its own; or None."""
        nodes = self.nodes
        if not (waited_for := [rank for node in self._unstarted for rank in nodes.own_ranks(node)]):
            return None
        have, them = ("have", "them") if len(waited_for) > 1 else ("has", "it")
        hangs = "the node hangs" if len(self._unstarted) == 1 else "the nodes hang"
        return TryAgain(
            MISSING,
            f"{nodes.of_ranks(waited_for)} {have} not been started, and those of the other nodes wait for {them}: "
            f"{hangs} before that; see its log, its GPUs, and the volume",
        )

    def share(self, failures: dict[int, RankFailure]) -> dict[int, RankFailure]:
        """Tell the other nodes how the ranks of this one have ended, and return the failures of all nodes.

        Where a rank failed here, another may have been first: the other nodes are waited for until they have said how
        they ended, or are lost. Raises TryAgain for a lost node, where nothing else explains the failures.
        """
        if self._fault is not None and not failures:
            raise self._fault  # which is told to the others as the end of this node
        self._say_end(failures, "")
        if not failures and self.find_trouble() is None:
            return {}
        apart = self._find_apart()  # not ranks whose time is over while the others are waited for here
        deadline = time.monotonic() + JOIN_SECONDS
        while (waited_for := set(self.nodes.others) - set(self._ends)) and time.monotonic() < deadline:
            lost = [self._lost(node) for node in waited_for if self._is_lost(node)]
            if self._silence:
                lost.append(TryAgain(LOST, self._silence))
            if apart is not None:
                lost.append(apart)
            if lost:
                if all(map(_may_follow_from_another, failures.values())):
                    raise lost[0]
                break
            time.sleep(POLL_SECONDS)
        for end in list(self._ends.values()):  # the thread adds to it
            failures |= {int(rank): RankFailure(**failure) for rank, failure in end["failures"].items()}
        if apart is not None and all(map(_may_follow_from_another, failures.values())):
            raise apart  # which those that failed have made out of the end of others
        if not failures and (trouble := self.find_trouble()) is not None:
            raise trouble
        return failures

    def agents_store(self) -> Any:
        """Connect to the store by which torchrun's agents agree on ranks.

        A connection does one thing at a time: an agent may wait there for ever, while this node has to say its end.
        """
        from llm_tuning.trainers.parallel import connect_store

        return connect_store(self.store_address, self.nodes.port)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _should_have_come(self, since: float | None) -> bool:
        """Return whether a node that is known to run since then has had its time to come; None: it is not known yet."""
        return since is not None and self._clock.now() - since > JOIN_SECONDS

    def _find_apart(self) -> TryAgain | None:
        """Return why the ranks do not come together, or no longer, though all nodes are alive; or None."""
        if self._silence:
            return TryAgain(LOST, self._silence)
        nodes, unbegun, unconnected = self.nodes, self._unbegun, self._unconnected
        if unbegun and self._should_have_come(self._first_at):
            have, hang = ("have", "they hang as they start") if len(unbegun) > 1 else ("has", "it hangs as it starts")
            its = "their" if len(unbegun) > 1 else "its"
            return TryAgain(
                MISSING,
                f"{nodes.of_ranks(unbegun)} {have} not begun to connect to the other ranks within {JOIN_SECONDS:.0f} s "
                f"of the first that did: {hang}, or {its} machine is far slower than the others; see {its} log, {its} "
                "GPU, and the volume",
            )
        if unconnected and self._should_have_come(self._begun_at):
            late = f"not connected to the other ranks within {JOIN_SECONDS:.0f} s"
            said = f"has {late}: see its log"
            if len(unconnected) > 1:
                said = f"have {late}, and which of them keeps the others waiting is not known: see their logs"
            return TryAgain(
                MISSING,
                f"{nodes.of_ranks(unconnected)} {said}, whether NetworkPolicies let the pods of this run reach each "
                "other at all ports, and whether the network interface is the right one",
            )
        return None

    def _say_end(self, failures: dict[int, RankFailure], message: str) -> None:
        said = {"failures": {rank: asdict(failure) for rank, failure in failures.items()}, "message": message[:1000]}
        self._said = True
        with suppress(RuntimeError):  # the store has gone with node 0
            self._store.set(f"ended/{self.nodes.index}", json.dumps(said))

    def _is_awaited(self) -> bool:
        return any(not self._is_lost(node) for node in set(self._heard) - set(self._ends))

    def _is_lost(self, node: int) -> bool:
        if node == 0 and (self._broken or self._clock.now() - self._looked > LOST_SECONDS):
            return True
        return node in self._heard and self._looked - self._heard[node] > LOST_SECONDS

    def _lost(self, node: int) -> TryAgain:
        how = "has ended without a word" if node == 0 and self._broken else f"was not heard of for {LOST_SECONDS:.0f} s"
        return TryAgain(
            LOST, f"{self.nodes.of_node(node)} {how}: its pod was ended or evicted, or the network between them is cut"
        )

    def _beat(self, store: Any) -> None:
        """Write that this node is alive, and read the same of the others, until the end or until the store is gone.

        No other thread waits for an answer of the store: where the network is cut there may be none for ever.
        """
        count = 0
        try:
            while True:
                count += 1
                self._look(store, count)
                if self._over.wait(BEAT_SECONDS):
                    return
        except RuntimeError:  # torch's errors of a store: the connection is closed
            self._broken = True
        except Exception as error:
            own = self.nodes.name(self.nodes.index)
            log.exception("%s can watch the other nodes no more", own)
            self._fault = RuntimeError(f"{own} can watch the other nodes no more: {type(error).__name__}: {error}")

    def _look(self, store: Any, count: int) -> None:
        self._connections.look(self._clock.now())
        store.set(f"beat/{self.nodes.index}", " ".join([str(count), *sorted(self._connections.own)]))
        for node in self.nodes.others:
            self._look_at(store, node)
            self._look_for_silence(store, node)
        self._look_at_the_run(store)
        self._looked = self._clock.now()

    def _look_at(self, store: Any, node: int) -> None:
        if node in self._ends or not store.check([f"beat/{node}"]):
            return
        beat = store.get(f"beat/{node}")
        if beat != self._beats.get(node):
            self._beats[node], self._heard[node] = beat, self._clock.now()
        if store.check([f"ended/{node}"]):
            self._ends[node] = json.loads(store.get(f"ended/{node}"))

    def _look_for_silence(self, store: Any, node: int) -> None:
        """Tell all where connections to `node` have gone silent, though it writes to the store."""
        addresses = self._beats.get(node, b"").decode().split()[1:]
        if not self._silence and self._connections.silent_for(addresses, self._clock.now()) > LOST_SECONDS:
            self._silence = (
                f"{self.nodes.of_node(node)} has acknowledged nothing that {self.nodes.of_node(self.nodes.index)} has "
                f"sent it for {LOST_SECONDS:.0f} s, though both are alive: the network between them is cut, or lets "
                f"nothing but port {self.nodes.port} through"
            )
            store.set("silence", self._silence)

    def _look_at_the_run(self, store: Any) -> None:
        if not self._silence and store.check(["silence"]):
            self._silence = store.get("silence").decode()
        if self._work is None and store.check(["work"]):
            self._work = Path(store.get("work").decode())
        self._unstarted = _lacking(store, "starting", self._unstarted)
        if self._unbegun:
            self._unbegun = _lacking(store, "connecting", self._unbegun)
            if len(self._unbegun) < self.nodes.world:
                self._first_at = self._first_at or self._clock.now()
            if not self._unbegun:
                self._begun_at = self._clock.now()
        else:
            self._unconnected = _lacking(store, "connected", self._unconnected)


def _may_follow_from_another(failure: RankFailure) -> bool:
    """Return whether a rank may have failed since others had left: with an error, or as it was asked to stop for that.

    A rank that stopped by itself says why.
    """
    return failure.exit_code == 1 or (failure.exit_code == EXIT_TRY_AGAIN and "reason" not in failure.error)


def _lacking(store: Any, key: str, numbers: list[int]) -> list[int]:
    """Return those of `numbers` of which the store has no `key`."""
    return [number for number in numbers if not store.check([f"{key}/{number}"])]


def _is_known(host: str) -> bool:
    """Return whether a name server knows `host`, or none answers at all.

    For a name that the cluster does not know yet, resolvers go on to servers outside, and where those cannot be reached
    they report that. The name of the Service, which this pod has as well, tells whether the cluster's own one answers.
    """
    error = _look_up(host)
    if error in (None, socket.EAI_NONAME):
        return error is None
    service = host.partition(".")[2]
    return not service or _look_up(service) is not None


def _look_up(host: str) -> int | None:
    """Look `host` up; returns the resolver's error, None where it has an address."""
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        return error.errno
    return None

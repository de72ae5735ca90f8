"""From what groups of rows share to each row's own: vectors of the user side, and the events that a row may see."""

import torch
from torch import Tensor

from rankmixer_dist.batch import Groups
from rankmixer_dist.embedded import Embedded, Events
from rankmixer_dist.layers.jagged import row_of_event, to_events


def by_row(found: Embedded, groups: Groups) -> Embedded:
    """Gives every row what its group's first row has of the groups' features.

    Rows of a group share one vector until here: its gradient is the sum over the rows.
    """
    rows = groups.group_B.new_full((1,), len(groups.group_B))
    offsets = torch.cat([groups.first_G, rows])
    vectors = dict(found.vectors)
    for name in groups.features:
        if name in vectors:
            vectors[name] = to_events(vectors[name].index_select(0, groups.first_G), groups.group_B, offsets)
    events = dict(found.events)
    told = zip(groups.sequences, groups.visible_SB, groups.newest, groups.seen, strict=True)
    for name, visible_B, newest, seen in told:
        events[name] = _seen(found.events[name], groups, visible_B, newest, seen)
    return Embedded(vectors, events)


def _seen(events: Events, groups: Groups, visible_B: Tensor, newest: int, seen: int) -> Events:
    """What each row reads of its group's events: the newest of the prefix that it may see."""
    counts_B = visible_B.clamp(max=newest)
    offsets = torch.cat([counts_B.new_zeros(1), counts_B.cumsum(0)])
    begin_B = events.offsets.index_select(0, groups.first_G).index_select(0, groups.group_B) + visible_B - counts_B
    event_N = torch.arange(seen, device=offsets.device)
    event_N = event_N + (begin_B - offsets[:-1]).index_select(0, row_of_event(offsets, seen))
    return Events(events.values_ND.index_select(0, event_N), offsets)

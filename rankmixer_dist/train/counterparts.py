"""Which parts of another run's model mean the same as this run's, under their names there."""

from rankmixer_dist.config import ModelConfig
from rankmixer_dist.identity import DataSeen, NumericScale, Rename, columns_of, first_difference, parts
from rankmixer_dist.schema import NumericFeature, Schema, SequenceFeature

Cut = tuple[str, tuple[float, ...] | None]
"""A raw column and its boundaries, None where it has none."""


class Counterparts:
    """Two models, part by part.

    Args:
        theirs, their_model: of the other run.
        mine, my_model: of this one.
        there: a name here -> the name there; one that is not known there stands for itself.
    """

    def __init__(
        self, theirs: Schema, their_model: ModelConfig, mine: Schema, my_model: ModelConfig, there: Rename
    ) -> None:
        self.theirs, self.their_model, self.mine, self.my_model = theirs, their_model, mine, my_model
        self.there = there
        self._their_parts, self._my_parts = parts(theirs, their_model), parts(mine, my_model)

    def old_name(self, kind: str, name: str) -> str:
        """What a table, feature, group or task is called there."""
        old = self.there(name)
        return old if f"{kind} {old}" in self._their_parts else name

    def table_problem(self, table: str) -> str | None:
        """Why a table's rows there are not those of the same ids here, or None."""
        old = self.old_name("table", table)
        if f"table {old}" not in self._their_parts:
            return "not there"
        found = first_difference(self._their_parts[f"table {old}"], self._my_parts[f"table {table}"])
        mine, theirs = self._columns_of(table)
        hashed = any(boundaries is None for _, boundaries in mine)
        if found is not None and (found[0] != "salt" or hashed):
            key, was, now = found
            problem = f"{key} was {was!r} and is {now!r}"
            if key == "salt":
                problem += f": set features.tables.{table}.salt: {was}"
            return problem
        if {each for each in mine if each[1]} != {each for each in theirs if each[1]}:
            return "its boundaries were others"
        return None

    def _columns_of(self, table: str) -> tuple[set[Cut], set[Cut]]:
        """`columns_of` a table here, by the columns' names there, and there."""
        theirs = columns_of(self.theirs, self.old_name("table", table))
        known = {column for column, _ in theirs}
        mine = {(c if c in known else self.there(c), cut) for c, cut in columns_of(self.mine, table)}
        return mine, theirs

    def table_difference(self, table: str) -> str | None:
        """What a table's ids are here and there, where it is taken though no raw column of them is the same, or None.

        Ids of another column may be the same ids, as those of a history and of a candidate are; or of other things.
        """
        here, there = ({column for column, _ in columns} for columns in self._columns_of(table))
        if here & there or self.table_problem(table) is not None:
            return None
        return f"its ids were of {', '.join(sorted(there))} and are of {', '.join(sorted(here))}"

    def feature_problem(self, feature: str) -> str | None:
        """Why a feature's embedding or number there is not the same here, or None; its group does not count."""
        old = self._their_parts.get(f"feature {self.old_name('feature', feature)}")
        if old is None:
            return "not there"
        mine = dict(self._my_parts[f"feature {feature}"])
        mine["column"] = self.there(mine["column"]) if mine["column"] != old["column"] else mine["column"]
        if mine.get("table") is not None:
            mine["table"] = self.old_name("table", mine["table"])
        if mine.get("query") is not None:
            mine["query"] = self.old_name("feature", mine["query"])
        found = first_difference(old, mine, but=frozenset({"group", "max_length", "separator"}))
        return None if found is None else f"{found[0]} was {found[1]!r} and is {found[2]!r}"

    def task_problem(self, task: str) -> str | None:
        """Why a task there is not the same here, or None."""
        old = self._their_parts.get(f"task {self.old_name('task', task)}")
        column = self._my_parts[f"task {task}"]["column"]
        if old is None or column == old["column"] or self.there(column) == old["column"]:
            return "not there" if old is None else None
        return f"column was {old['column']!r} and is {column!r}"

    def differences(self) -> list[str]:
        """In words, what has the same name there and is not quite the same, though its weights may be taken."""
        said = [f"table {name}: {self.table_difference(name)}" for name in self.mine.tables]
        said += [f"feature {name}: {self.feature_problem(name)}" for name in self.mine.features]
        said += [f"task {name}: {self.task_problem(name)}" for name in self.mine.tasks]
        said = [line for line in said if not line.endswith((": None", ": not there"))]
        for name, feature in self.mine.of_kind(SequenceFeature).items():
            old = self.theirs.features.get(self.old_name("feature", name))
            if isinstance(old, SequenceFeature) and old.max_length != feature.max_length:
                said.append(f"feature {name}: max_length was {old.max_length} and is {feature.max_length}")
        found = first_difference(self._their_parts["model"], self._my_parts["model"])
        return said + ([] if found is None else [f"model.{found[0]} was {found[1]!r} and is {found[2]!r}"])

    def has_same_tokens(self) -> bool:
        """Whether each token's place holds the same group's token, or the same cut of the row."""
        mine, theirs = self.my_model, self.their_model
        tasks = [self.old_name("task", name) for name in self.mine.tasks]
        if mine.backbone != theirs.backbone or (mine.backbone == "moe" and tasks != [*self.theirs.tasks]):
            return False
        if (mine.tokenizer.kind, mine.tokenizer.global_token) != (theirs.tokenizer.kind, theirs.tokenizer.global_token):
            return False
        groups = [(self.old_name("group", name), tokens) for name, tokens in self.mine.groups.items()]
        return mine.tokenizer.kind != "group" or groups == [*self.theirs.groups.items()]

    def changed_groups(self) -> list[str]:
        """Semantic groups that have other features, or in another order, there."""

        def members(schema: Schema, group: str) -> list[str]:
            return [name for name, feature in schema.features.items() if feature.group == group]

        return [
            group
            for group in self.mine.groups
            if [self.old_name("feature", name) for name in members(self.mine, group)]
            != members(self.theirs, self.old_name("group", group))
            or any(self.feature_problem(name) is not None for name in members(self.mine, group))
        ]

    def scales(self, theirs: DataSeen) -> dict[str, NumericScale]:
        """The scales that go with the weights of numerics, by their name here; none of one that was constant there."""
        names = [name for name in self.mine.of_kind(NumericFeature) if self.feature_problem(name) is None]
        found = {name: theirs.numerics[self.old_name("feature", name)] for name in names}
        return {name: scale for name, scale in found.items() if scale.std > 0}

"""Names that columns of prepared data have, and those that a declaration cannot have."""

MISSING_ID = 0
"""Row of every table that a missing or unknown id is mapped to; real ids start at 1."""

ID_HASH = 2
"""Version of the hash that takes ids to rows of tables: a change that moves an id to another row has to raise it, so
that no checkpoint's rows are taken for those of other ids. 2 = a string of digits has the row of the integer."""

ROW_ID, USER_ID, TIMESTAMP = "row_id", "user_id", "timestamp"
"""Columns that every prepared row carries beside its features and labels."""

LABEL_PREFIX, TRUTH_PREFIX = "label_", "truth_"
"""Prepared columns `label_<task>`, and `truth_<task>` where a source knows the true probability."""

SCORE_PREFIX = "score_"
"""Columns of predictions `score_<task>`, beside `label_<task>`."""

GROUP_START = "group_start"
"""Prepared column of grouped rows: whether a row is the first of its group, which holds the group's user side."""

TORCH_NAMES = frozenset(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches
    eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys
    load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to to_empty
    train training type update values xpu zero_grad
    """.split()
)
"""Names that a table cannot have: torch holds tables as attributes of a module that has these already."""

USER_SLICES = ("user_known", "user_activity")
TIME_SLICES = ("hour", "day")
"""Columns to slice an evaluation by that every dataset has: by the user's rows in the training split, by the clock."""

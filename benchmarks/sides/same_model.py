"""What the models of the peers have: a side that left out the rest would be measured on less work than ours."""

from __future__ import annotations

from minivit.nn.config import ViTConfig

_DROPOUT = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")


def check_same_model(config: ViTConfig, activations: tuple[str, ...] = ("gelu",)) -> None:
    """Raise ValueError unless a peer's model, which reads the class token and has no dropout, is that of `config`.

    Parameters
    ----------
    config : ViTConfig
        Of our model.
    activations : tuple of str
        Those that the peer has.
    """
    if not config.class_token or config.global_pool != "token":
        raise ValueError("the model of this side reads the class token; expected global_pool='token'")
    if config.act_layer not in activations:
        expected = " or ".join(map(repr, activations))
        raise ValueError(f"the model of this side has no other act_layer than {expected}, got {config.act_layer!r}")
    check_no_dropout(config)


def check_no_dropout(config: ViTConfig) -> None:
    """Raise ValueError if `config` has dropout, of which no side draws any."""
    for name in _DROPOUT:
        if getattr(config, name):
            raise ValueError(f"the model of this side has no dropout; {name} is {getattr(config, name)}, expected 0")

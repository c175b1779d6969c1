"""A module as a pure function of its parameters: abstract shapes, shardings, initialization.

Outside a module, parameters are nested dicts of arrays; ``ModelDefinition.bind`` puts them back into it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from unihetero_jax.parallel.initial_values import initial_values
from unihetero_jax.parallel.mesh import RULES, Rules

Params = dict[str, Any]
Module = TypeVar("Module", bound=nnx.Module)


@dataclass(frozen=True)
class ModelDefinition(Generic[Module]):
    """A model without its parameters.

    Attributes:
      create: builds the module from random keys.
      graph: structure of the module.
      abstract: shape, type and metadata of each parameter.
    """

    create: Callable[[nnx.Rngs], Module]
    graph: Any
    abstract: nnx.State

    def init(self, key: jax.Array) -> Params:
        """Initialize the parameters, each from the key and its path; pure, and independent of the sharding."""
        return initial_values(self.create, key)

    def bind(self, params: Params, dropout_key: jax.Array | None = None) -> Module:
        """Return the module with these parameters; ``dropout_key`` is for the dropout of LoRA, where there is any."""
        del dropout_key
        # A copy of the tree's structure: the shared abstract state must not be filled in.
        state = jax.tree.map(lambda leaf: leaf, self.abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.graph, state)

    def shapes(self) -> Params:
        """Return the shape and type of each parameter."""
        return nnx.to_pure_dict(self.abstract)

    def shardings(self, mesh: Mesh, rules: Rules = RULES) -> Params:
        """Return the sharding of each parameter, from the logical axes that it carries."""

        def place(variable: nnx.Param) -> Any:
            shape = variable.get_value().shape
            # A user's plain module has no logical axes, and is replicated.
            axes = variable.get_metadata().get("axes") or (None,) * len(shape)
            if len(axes) < len(shape):  # a stack of layers
                axes = ("layers", *axes)
            return variable.replace(NamedSharding(mesh, rules.spec(axes, shape, mesh)))

        return nnx.to_pure_dict(jax.tree.map(place, self.abstract, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)))


def define_module(create: Callable[[nnx.Rngs], Module]) -> ModelDefinition[Module]:
    """Return the definition of the module that ``create`` builds; nothing is computed."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0))), nnx.Param)
    return ModelDefinition(create, graph, abstract)

"""Contrasts between recipes: sums and differences of their accuracies."""

from pydantic import Field, model_validator

from copra.schema.settings import Settings
from copra.utils.problems import shown


class Contrast(Settings):
    """A contrast: the sum of the accuracies of some recipes minus that of as many others, seed by seed."""

    plus: list[str] = Field(min_length=1)
    """Recipes whose accuracies are added, such as `llama+cot+coconut`."""
    minus: list[str] = Field(min_length=1)
    """Recipes whose accuracies are subtracted, as many as in `plus`."""

    @property
    def recipes(self) -> list[str]:
        """All recipes of the contrast."""
        return [*self.plus, *self.minus]

    @model_validator(mode="after")
    def _balanced(self) -> "Contrast":
        if len(self.plus) != len(self.minus):
            raise ValueError(
                f"plus: has {len(self.plus)} recipes and 'minus' {len(self.minus)}, so the contrast of equal "
                "recipes would not be 0. Give as many"
            )
        for name in self.plus:
            if name in self.minus:
                raise ValueError(
                    f"plus: {shown(name)} is in 'minus' too, so it cancels out. Leave it out of both"
                )
        return self


class NamedContrast(Contrast):
    """A contrast with its name."""

    name: str

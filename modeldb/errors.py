"""Errors of the model database and its readers; each message is the sentence a user will read."""


class ModelError(ValueError):
    """Base of every error raised here for input that names or describes a model."""


class UnknownModel(ModelError):
    """No model has this name. `suggestions` are close names, never used silently."""

    def __init__(self, name: str, suggestions: tuple[str, ...] = ()) -> None:
        self.name, self.suggestions = name, suggestions
        hint = f"; did you mean {', '.join(suggestions)}?" if suggestions else ""
        super().__init__(f"no model is called `{name}`{hint}")


class AmbiguousModel(ModelError):
    """Several models bear this name. `choices` are their ids."""

    def __init__(self, name: str, choices: tuple[str, ...]) -> None:
        self.name, self.choices = name, choices
        super().__init__(f"`{name}` is ambiguous: choose one of {', '.join(choices)}")


class UnknownScheme(ModelError):
    """No quantization scheme or tensor format has this name."""

    def __init__(self, name: str, suggestions: tuple[str, ...] = ()) -> None:
        self.name, self.suggestions = name, suggestions
        hint = f"; did you mean {', '.join(suggestions)}?" if suggestions else ""
        super().__init__(f"no quantization is called `{name}`{hint}")


class UnsupportedModel(ModelError):
    """The file or configuration is sound, but describes something this version cannot price."""


class BrokenFile(ModelError):
    """The file is truncated, inconsistent or not what it claims to be."""

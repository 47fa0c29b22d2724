"""Errors of the hardware database; each message is the sentence a user will read."""


class HardwareError(ValueError):
    """Base of every error raised here for input that names or describes hardware."""


class UnknownDevice(HardwareError):
    """No device has this name. `suggestions` are close names, never used silently."""

    def __init__(self, name: str, suggestions: tuple[str, ...] = ()) -> None:
        self.name, self.suggestions = name, suggestions
        hint = f"; did you mean {', '.join(suggestions)}?" if suggestions else ""
        super().__init__(f"no device is called `{name}`{hint}")


class AmbiguousDevice(HardwareError):
    """Several devices bear this name. `choices` are their ids."""

    def __init__(self, name: str, choices: tuple[str, ...]) -> None:
        self.name, self.choices = name, choices
        super().__init__(f"`{name}` is ambiguous: choose one of {', '.join(choices)}")


class CannotKeep(HardwareError):
    """A measurement cannot be written to the user's configuration folder."""


class BrokenMachineFile(HardwareError):
    """A machine file cannot be read. The message starts with `file:line:` where a line is known."""

"""What can go wrong in the kernel, by what the caller has to do about it.

No text of these errors depends on private data, and none holds a key, a share or a
seed: they are safe to log and to send.
"""


class PrivacyError(Exception):
    """Base of every error that the kernel raises on purpose."""


class RefusalError(PrivacyError):
    """We declined; nothing left this process."""


class BudgetExceededError(RefusalError):
    """The round would spend more than the plan or the client's own cap allows."""


class UnsupportedEventError(RefusalError):
    """The accountant has no rigorous price for what was asked."""


class PlanMismatchError(RefusalError):
    """The other side works to a different plan, or the plan is not acceptable."""


class WrappingSumError(PlanMismatchError):
    """A sum under these terms may pass half the modulus, and would then be lost."""


class ReplayError(RefusalError):
    """A round, an attempt or an answer that was already given was asked for again."""


class BelowThresholdError(RefusalError):
    """Too few clients for the sum to be safe to open."""


class ProtocolError(PrivacyError):
    """A message was wrong; abandon the round."""


class MalformedMessageError(ProtocolError):
    """Bytes that do not parse as the one canonical form of the message."""


class FaultyServerError(ProtocolError):
    """The server sent something that an honest server cannot send."""


class FaultyClientError(ProtocolError):
    """A client sent something that an honest client cannot send.

    Args:
        client: the name of the client to blame.
        reason: what was wrong, in words.
    """

    def __init__(self, client: str, reason: str) -> None:
        super().__init__(f"client {client!r}: {reason}")
        self.client = client
        self.reason = reason


class FaultyPeerOrServerError(ProtocolError):
    """Wrong, and the receiver cannot tell whether the peer or the server did it.

    Args:
        peer: the client in whose name the message came.
        reason: what was wrong, in words.
    """

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"client {peer!r} or the server: {reason}")
        self.peer = peer
        self.reason = reason


class LedgerError(PrivacyError):
    """The record is unreliable; call a person before going on."""


class BrokenChainError(LedgerError):
    """A record is missing, altered, out of order or cut short."""


class BadSignatureError(LedgerError):
    """A record or message is not signed by the key that it must be signed by."""


class DisagreementError(LedgerError):
    """Two records that must agree do not."""


class EquivocationError(LedgerError):
    """The server signed two histories, or one that is not what it told us."""


class RollbackError(LedgerError):
    """A ledger is older than what others have seen of it."""

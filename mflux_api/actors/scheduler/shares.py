"""How much of the queue one caller may take: never all of it while others might come."""


def share_of(whole: int, *, others: int) -> int:
    """Return how many of the queue's places a caller may hold.

    With K callers that all want as much as they get, each comes to hold 1/(K + 1), and as much stays for another one.

    Args:
        whole: how many places there are.
        others: how many of them other callers hold.
    """
    # Alone, as much as leaves a newcomer some room; beside others, half of what they leave.
    return max(1, whole * 9 // 10 if not others else (whole - others) // 2)

"""How much of the queue one caller may take: not all of it while others might come, unless it is small."""


def share_of(whole: int, *, others: int) -> int:
    """Return how many of the queue's places a caller may hold.

    With K callers that all want as much as they get, each comes to hold 1/(K + 1), and as much stays for another one.

    Args:
        whole: how many places there are.
        others: how many of them other callers hold.
    """
    # Alone, all but a tenth, rounded down: who sets 5 places means 5. Beside others, half of what they leave.
    return max(1, whole - whole // 10 if not others else (whole - others) // 2)

"""The words that the demo tokenizer learns its merges from, the most frequent first.

Changing one changes the demo tokenizer, and with it every demo checkpoint.
"""

WORDS: tuple[str, ...] = (
    *("user", "model"),  # every turn begins with one of them
    *("the", "of", "and", "to", "a", "in", "is", "that", "it", "for", "you", "was", "on", "with", "as", "be", "this"),
    *("are", "by", "not", "from", "or", "have", "an", "at", "which", "one", "we", "can", "all", "what", "how", "there"),
    *("system", "answer", "question", "text", "token", "word", "sentence", "paragraph", "language"),
    *("their", "has", "will", "would", "when", "who", "more", "if", "no", "out", "so", "said", "about", "up", "into"),
    *("them", "then", "she", "he", "his", "her", "they", "my", "me", "your", "its", "our", "been", "other", "some"),
    *("time", "people", "year", "way", "day", "man", "woman", "child", "world", "life", "hand", "part", "place"),
    *("case", "week", "company", "program", "number", "night", "point", "home", "water", "room", "mother", "area"),
    *("money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "business", "issue", "side"),
    *("kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end", "member", "law"),
    *("car", "city", "community", "name", "president", "team", "minute", "idea", "body", "information", "back"),
    *("parent", "face", "level", "office", "door", "health", "person", "art", "war", "history", "party", "result"),
    *("change", "morning", "reason", "research", "girl", "boy", "moment", "air", "teacher", "force", "education"),
    *("good", "new", "first", "last", "long", "great", "little", "own", "old", "big", "high", "different", "small"),
    *("large", "next", "early", "young", "important", "few", "public", "bad", "same", "able", "better", "best"),
    *("go", "get", "make", "know", "think", "take", "see", "come", "want", "look", "use", "find", "give", "tell"),
    *("work", "call", "try", "ask", "need", "feel", "become", "leave", "put", "mean", "keep", "let", "begin", "seem"),
    *("help", "show", "hear", "play", "run", "move", "live", "believe", "bring", "happen", "write", "provide", "sit"),
    *("stand", "lose", "pay", "meet", "include", "continue", "set", "learn", "lead", "understand", "watch", "follow"),
    *("stop", "create", "speak", "read", "allow", "add", "spend", "grow", "open", "walk", "win", "offer", "remember"),
    *("love", "consider", "appear", "buy", "wait", "serve", "send", "expect", "build", "stay", "fall", "cut", "reach"),
    *("because", "through", "between", "after", "before", "under", "while", "where", "should", "could", "might"),
    *("computer", "machine", "memory", "network", "server", "window", "local", "global", "attention", "layer", "cache"),
    *("prompt", "batch", "block", "sequence", "request", "response", "stream", "worker", "gateway", "engine", "kernel"),
    *("river", "mountain", "forest", "ocean", "island", "summer", "winter", "garden", "music", "silver", "golden"),
    *("hello", "please", "thank", "welcome", "today", "tomorrow", "yesterday", "always", "never", "maybe", "very"),
    *(
        "quickly",
        "slowly",
        "simply",
        "really",
        "actually",
        "certainly",
        "usually",
        "nothing",
        "something",
        "everything",
    ),
    *("running", "walking", "reading", "writing", "making", "taking", "working", "looking", "started", "wanted"),
)

"""maskpipe: chats and text to packed Arrow shards in which every token carries the right role and loss flag."""

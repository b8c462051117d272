"""A tool of your own: an MCP server, made with the `mcp` package, that knows what things cost.

COGITATE_TOOL_EXECUTOR_MCP_CONFIG=examples/tools.toml cogitate up --detach
cogitate ask "What is the price of tea?" --tool shop.price
"""

from mcp.server import MCPServer
from mcp_types import ToolAnnotations

PRICES = {"bread": "3.20", "butter": "4.10", "lamp": "18", "pencil": "0.90", "tea": "5.40"}

server = MCPServer("shop", version="1.0")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def price(item: str) -> str:
    """What an item costs."""
    return PRICES.get(item.lower(), f"There is no {item} in the shop.")


if __name__ == "__main__":
    server.run()

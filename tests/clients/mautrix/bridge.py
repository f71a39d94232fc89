"""An application service made with mautrix, driven over standard input and output; see ../README.md."""

import asyncio
import pathlib
import sys

# The folder of this script has the library's name: it must not be searched for modules.
sys.path[0] = str(pathlib.Path(__file__).parent.parent)

from driver import Driver, run
from mautrix.appservice import AppService
from mautrix.appservice.state_store.memory import ASStateStore
from mautrix.client.state_store import MemoryStateStore
from mautrix.types import EventType


class StateStore(ASStateStore, MemoryStateStore):
    def __init__(self):
        ASStateStore.__init__(self)
        MemoryStateStore.__init__(self)


class BridgeDriver(Driver):
    async def start(self, id, bot, domain, port, as_token, hs_token):
        self.bridge = AppService(
            server=self.url,
            domain=domain,
            as_token=as_token,
            hs_token=hs_token,
            bot_localpart=bot,
            id=id,
            query_user=self.on_query,
            state_store=StateStore(),
            ephemeral_events=True,
        )
        self.bridge.matrix_event_handler(self.on_event)
        await self.bridge.start("127.0.0.1", port)
        await self.bridge.intent.ensure_registered()

    async def on_query(self, user_id):
        await self.bridge.intent.user(user_id).ensure_registered()
        return {"exists": True}

    async def on_event(self, event):
        if event.type == EventType.ROOM_MESSAGE:
            await self.saw_message(event.room_id, event.event_id, event.sender, event.content.serialize())
        elif event.type == EventType.ROOM_MEMBER and event.content.membership.value == "invite":
            await self.saw("invite", room_id=event.room_id, user_id=event.state_key)
        elif event.type == EventType.TYPING:
            await self.saw_typing(event.room_id, event.content.user_ids)

    async def ping(self):
        return {"duration_ms": await self.bridge.ping_self("driver")}

    async def join(self, room_id, user_id):
        await self.bridge.intent.user(user_id).ensure_joined(room_id)

    async def send(self, room_id, user_id, body, ts):
        intent = self.bridge.intent.user(user_id)
        return {"event_id": await intent.send_text(room_id, body, timestamp=ts)}

    async def close(self):
        await self.bridge.stop()


async def main():
    await run(BridgeDriver(sys.argv[1]))


asyncio.run(main())

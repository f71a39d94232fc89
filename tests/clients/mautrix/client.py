"""mautrix, driven over standard input and output; see ../README.md."""

import asyncio
import pathlib
import sys

# The folder of this script has the library's name: it must not be searched for modules.
sys.path[0] = str(pathlib.Path(__file__).parent.parent)

from driver import Driver, run
from mautrix.api import Method, Path
from mautrix.client import Client, InternalEventType
from mautrix.client.state_store import MemoryStateStore
from mautrix.types import (
    EventType,
    Filter,
    MessageType,
    PaginationDirection,
    RoomCreatePreset,
    TextMessageEventContent,
)


class MautrixDriver(Driver):
    def __init__(self, url):
        super().__init__(url)
        self.client = Client(base_url=url, state_store=MemoryStateStore())

    async def register(self, user, password):
        body = {"username": user, "password": password, "auth": {"type": "m.login.dummy"}}
        account = await self.client.api.request(Method.POST, Path.v3.register, body)
        self.client.mxid = account["user_id"]
        self.client.device_id = account["device_id"]
        self.client.api.token = account["access_token"]
        return await self.started()

    async def login(self, user, password):
        await self.client.login(user, password=password)
        return await self.started()

    async def started(self):
        client = self.client
        handlers = {
            EventType.ROOM_MESSAGE: self.on_message,
            EventType.REACTION: self.on_reaction,
            EventType.ROOM_REDACTION: self.on_redaction,
            EventType.ROOM_MEMBER: self.on_member,
            EventType.TYPING: self.on_typing,
            EventType.RECEIPT: self.on_receipt,
        }
        for event_type, handler in handlers.items():
            client.add_event_handler(event_type, handler)
        synced = asyncio.Event()

        async def on_sync(_):
            synced.set()

        client.add_event_handler(InternalEventType.SYNC_SUCCESSFUL, on_sync)
        client.start(Filter())
        await synced.wait()
        return {"user_id": str(client.mxid)}

    async def on_message(self, event):
        content = event.content.serialize()
        await self.saw_message(event.room_id, event.event_id, event.sender, content)

    async def on_reaction(self, event):
        relation = event.content.relates_to
        members = {"event_id": relation.event_id, "sender": event.sender, "key": relation.key}
        await self.saw("reaction", room_id=event.room_id, **members)

    async def on_redaction(self, event):
        await self.saw("redaction", room_id=event.room_id, event_id=event.redacts)

    async def on_member(self, event):
        membership = event.content.membership.value
        members = {"user_id": event.state_key, "membership": membership}
        await self.saw("member", room_id=event.room_id, **members)
        if membership == "invite" and event.state_key == self.client.mxid:
            await self.saw("invite", room_id=event.room_id)

    async def on_typing(self, event):
        await self.saw_typing(event.room_id, event.content.user_ids)

    async def on_receipt(self, event):
        for event_id, receipts in event.content.items():
            for users in receipts.values():
                for user_id in users:
                    await self.saw("receipt", room_id=event.room_id, event_id=event_id, user_id=user_id)

    async def create_room(self, public):
        preset = RoomCreatePreset.PUBLIC if public else RoomCreatePreset.PRIVATE
        return {"room_id": await self.client.create_room(preset=preset)}

    async def invite(self, room_id, user_id):
        await self.client.invite_user(room_id, user_id)

    async def join(self, room_id):
        await self.client.join_room_by_id(room_id)

    async def leave(self, room_id):
        await self.client.leave_room(room_id)

    async def send(self, room_id, body):
        return {"event_id": await self.client.send_text(room_id, body)}

    async def edit(self, room_id, event_id, body):
        content = TextMessageEventContent(msgtype=MessageType.TEXT, body=body)
        content.set_edit(event_id)
        return {"event_id": await self.client.send_message(room_id, content)}

    async def react(self, room_id, event_id, key):
        return {"event_id": await self.client.react(room_id, event_id, key)}

    async def redact(self, room_id, event_id):
        return {"event_id": await self.client.redact(room_id, event_id)}

    async def typing(self, room_id, typing):
        await self.client.set_typing(room_id, timeout=30_000 if typing else 0)

    async def receipt(self, room_id, event_id):
        await self.client.send_receipt(room_id, event_id)

    async def paginate(self, room_id, limit):
        bodies, start = [], None
        while len(bodies) < limit:
            page = await self.client.get_messages(
                room_id, PaginationDirection.BACKWARD, from_token=start, limit=100
            )
            texts = [event for event in page.events if event.type == EventType.ROOM_MESSAGE]
            bodies += [event.content.body for event in texts if event.content.body]
            start = page.end
            if not start:
                break
        return {"bodies": bodies[:limit]}

    async def close(self):
        self.client.stop()
        await self.client.api.session.close()


async def main():
    await run(MautrixDriver(sys.argv[1]))


asyncio.run(main())

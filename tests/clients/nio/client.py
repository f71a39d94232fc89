"""matrix-nio, driven over standard input and output; see ../README.md."""

import asyncio
import pathlib
import sys

import nio

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from driver import Driver, run


def checked(response):
    if isinstance(response, nio.ErrorResponse):
        raise RuntimeError(str(response))
    return response


class NioDriver(Driver):
    def __init__(self, url):
        super().__init__(url)
        self.client = None
        self.syncing = None

    async def register(self, user, password):
        self.client = nio.AsyncClient(self.url, user)
        checked(await self.client.register(user, password))
        return await self.started()

    async def login(self, user, password):
        self.client = nio.AsyncClient(self.url, user)
        checked(await self.client.login(password))
        return await self.started()

    async def started(self):
        client = self.client
        client.add_event_callback(self.on_message, nio.RoomMessageText)
        client.add_event_callback(self.on_reaction, nio.ReactionEvent)
        client.add_event_callback(self.on_redaction, nio.RedactionEvent)
        client.add_event_callback(self.on_member, nio.RoomMemberEvent)
        client.add_event_callback(self.on_invite, nio.InviteMemberEvent)
        client.add_ephemeral_callback(self.on_typing, nio.TypingNoticeEvent)
        client.add_ephemeral_callback(self.on_receipt, nio.ReceiptEvent)
        self.syncing = asyncio.create_task(client.sync_forever(timeout=5_000))
        await client.synced.wait()
        return {"user_id": client.user_id}

    async def on_message(self, room, event):
        await self.saw_message(room.room_id, event.event_id, event.sender, event.source["content"])

    async def on_reaction(self, room, event):
        members = {"event_id": event.reacts_to, "sender": event.sender, "key": event.key}
        await self.saw("reaction", room_id=room.room_id, **members)

    async def on_redaction(self, room, event):
        # The library reads `redacts` where room versions before 11 have it, which servers also fill in for clients.
        await self.saw("redaction", room_id=room.room_id, event_id=event.redacts)

    async def on_member(self, room, event):
        members = {"user_id": event.state_key, "membership": event.membership}
        await self.saw("member", room_id=room.room_id, **members)

    async def on_invite(self, room, event):
        if event.state_key == self.client.user_id and event.membership == "invite":
            await self.saw("invite", room_id=room.room_id)

    async def on_typing(self, room, event):
        await self.saw_typing(room.room_id, event.users)

    async def on_receipt(self, room, event):
        for receipt in event.receipts:
            members = {"event_id": receipt.event_id, "user_id": receipt.user_id}
            await self.saw("receipt", room_id=room.room_id, **members)

    async def create_room(self, public):
        preset = nio.RoomPreset.public_chat if public else nio.RoomPreset.private_chat
        return {"room_id": checked(await self.client.room_create(preset=preset)).room_id}

    async def invite(self, room_id, user_id):
        checked(await self.client.room_invite(room_id, user_id))

    async def join(self, room_id):
        checked(await self.client.join(room_id))

    async def leave(self, room_id):
        checked(await self.client.room_leave(room_id))

    async def sent(self, room_id, event_type, content):
        return {"event_id": checked(await self.client.room_send(room_id, event_type, content)).event_id}

    async def send(self, room_id, body):
        return await self.sent(room_id, "m.room.message", {"msgtype": "m.text", "body": body})

    async def edit(self, room_id, event_id, body):
        content = {
            "msgtype": "m.text",
            "body": f"* {body}",
            "m.new_content": {"msgtype": "m.text", "body": body},
            "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
        }
        return await self.sent(room_id, "m.room.message", content)

    async def react(self, room_id, event_id, key):
        relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        return await self.sent(room_id, "m.reaction", {"m.relates_to": relation})

    async def redact(self, room_id, event_id):
        return {"event_id": checked(await self.client.room_redact(room_id, event_id)).event_id}

    async def typing(self, room_id, typing):
        checked(await self.client.room_typing(room_id, typing))

    async def receipt(self, room_id, event_id):
        checked(await self.client.update_receipt_marker(room_id, event_id))

    async def paginate(self, room_id, limit):
        bodies, start = [], None
        while len(bodies) < limit:
            page = checked(await self.client.room_messages(room_id, start=start, limit=100))
            texts = [event for event in page.chunk if isinstance(event, nio.RoomMessageText)]
            bodies += [event.body for event in texts]
            start = page.end
            if not start:
                break
        return {"bodies": bodies[:limit]}

    async def close(self):
        if self.syncing:
            self.syncing.cancel()
        if self.client:
            await self.client.close()


async def main():
    await run(NioDriver(sys.argv[1]))


asyncio.run(main())

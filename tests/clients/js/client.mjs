// matrix-js-sdk, driven over standard input and output; see ../README.md.

import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";

// The library writes to the console; standard output belongs to the answers.
for (const level of ["debug", "error", "info", "log", "trace", "warn"]) console[level] = () => {};

const sdk = await import("matrix-js-sdk");
const encryption = await import("./encryption.mjs");
const baseUrl = process.argv[2];
let client;

const facts = [];
let waiting = [];

function saw(what, members) {
    facts.push({ what, ...members });
    for (const look of waiting) look();
}

function take(fact) {
    const index = facts.findIndex((seen) => Object.entries(fact).every(([key, value]) => seen[key] === value));
    return index < 0 ? undefined : facts.splice(index, 1)[0];
}

function onEvent(event, room, isOld) {
    const relation = event.getWireContent()["m.relates_to"] ?? {};
    const about = { room_id: room.roomId, event_id: event.getId(), sender: event.getSender() };
    // One's own event is first shown without waiting for the server; it counts once it has come back.
    if (isOld || event.isRedacted() || event.status !== null) return;
    if (event.isEncrypted() && (event.isDecryptionFailure() || !event.getClearContent())) {
        event.once(sdk.MatrixEventEvent.Decrypted, () => onEvent(event, room, isOld));
        return;
    }
    switch (event.getType()) {
        case "m.room.message":
            if (relation.rel_type === "m.replace") {
                const body = event.getWireContent()["m.new_content"].body;
                saw("edit", { ...about, event_id: relation.event_id, body });
            } else {
                saw("message", { ...about, body: event.getContent().body });
            }
            break;
        case "m.reaction":
            saw("reaction", { ...about, event_id: relation.event_id, key: relation.key });
            break;
        case "m.room.redaction":
            saw("redaction", { room_id: room.roomId, event_id: event.getAssociatedId() });
            break;
        case "m.room.member": {
            const membership = event.getContent().membership;
            saw("member", { room_id: room.roomId, user_id: event.getStateKey(), membership });
        }
    }
}

async function started(account, { encrypted, limit = 20 } = {}) {
    client = sdk.createClient({
        cryptoCallbacks: encryption.cryptoCallbacks,
        baseUrl,
        accessToken: account.access_token,
        userId: account.user_id,
        deviceId: account.device_id,
    });
    client.on(sdk.RoomEvent.Timeline, onEvent);
    client.on(sdk.RoomEvent.LocalEchoUpdated, (event, room) => onEvent(event, room));
    client.on(sdk.RoomEvent.MyMembership, (room, membership) => {
        if (membership === "invite") saw("invite", { room_id: room.roomId });
    });
    client.on(sdk.RoomMemberEvent.Typing, (_, member) => {
        saw("typing", { room_id: member.roomId, user_id: member.userId, typing: member.typing });
    });
    client.on(sdk.RoomEvent.Receipt, (event, room) => {
        for (const [event_id, receipts] of Object.entries(event.getContent())) {
            for (const users of Object.values(receipts)) {
                for (const user_id of Object.keys(users)) saw("receipt", { room_id: room.roomId, event_id, user_id });
            }
        }
    });
    const synced = new Promise((resolve) => {
        client.on(sdk.ClientEvent.Sync, (state) => state === "PREPARED" && resolve());
    });
    if (encrypted) await encryption.start(client, saw);
    await client.startClient({ initialSyncLimit: limit });
    await synced;
    return { user_id: account.user_id, device_id: account.device_id };
}

const commands = {
    ...encryption.commands,
    async register({ user, password }) {
        const auth = { type: "m.login.dummy" };
        return started(await sdk.createClient({ baseUrl }).registerRequest({ username: user, password, auth }));
    },
    async login({ user, password, ...options }) {
        const identifier = { type: "m.id.user", user };
        const request = { type: "m.login.password", identifier, password };
        return started(await sdk.createClient({ baseUrl }).loginRequest(request), options);
    },
    create_room: ({ public: isPublic, encrypted }) => {
        const content = { algorithm: "m.megolm.v1.aes-sha2" };
        const initial_state = encrypted ? [{ type: "m.room.encryption", state_key: "", content }] : [];
        return client.createRoom({ preset: isPublic ? "public_chat" : "private_chat", initial_state });
    },
    invite: ({ room_id, user_id }) => client.invite(room_id, user_id),
    join: ({ room_id }) => client.joinRoom(room_id),
    leave: async ({ room_id }) => {
        await client.leave(room_id);
        // The library does not join rooms that it believes its user to be in.
        while (client.getRoom(room_id)?.getMyMembership() === "join") {
            await delay(20);
        }
    },
    send: ({ room_id, body }) => client.sendTextMessage(room_id, body),
    edit: ({ room_id, event_id, body }) =>
        client.sendMessage(room_id, {
            "msgtype": "m.text",
            "body": `* ${body}`,
            "m.new_content": { msgtype: "m.text", body },
            "m.relates_to": { rel_type: "m.replace", event_id },
        }),
    react: ({ room_id, event_id, key }) =>
        client.sendEvent(room_id, "m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id, key } }),
    redact: ({ room_id, event_id }) => client.redactEvent(room_id, event_id),
    typing: ({ room_id, typing }) => client.sendTyping(room_id, typing, 30_000),
    set_pusher: ({ pusher }) => client.setPusher(pusher),
    remove_pusher: ({ pushkey, app_id }) => client.removePusher(pushkey, app_id),
    pushers: () => client.getPushers(),
    search: async ({ term }) => {
        const found = await client.searchRoomEvents({ term });
        return { event_ids: found.results.map((result) => result.context.getEvent().getId()) };
    },
    reply: ({ room_id, event_id, body }) => client.sendMessage(room_id, event_id, { msgtype: "m.text", body }),
    threads: async ({ room_id }) => {
        const page = await client.createThreadListMessagesRequest(room_id, null);
        return { event_ids: page.chunk.map((event) => event.event_id) };
    },
    relations: async ({ room_id, event_id }) => {
        const found = await client.relations(room_id, event_id, "m.thread", null);
        return { event_ids: found.events.map((event) => event.getId()) };
    },
    find_users: async ({ term }) => {
        const found = await client.searchUserDirectory({ term });
        return { user_ids: found.results.map((user) => user.user_id) };
    },
    mutual_rooms: async ({ user_id }) => ({ room_ids: await client._unstable_getSharedRooms(user_id) }),
    hierarchy: async ({ room_id }) => {
        const page = await client.getRoomHierarchy(room_id);
        return { room_ids: page.rooms.map((room) => room.room_id) };
    },
    summary: ({ room_id }) => client.getRoomSummary(room_id),
    upload: async ({ body }) => {
        const { content_uri } = await client.uploadContent(new Blob([body]), { type: "text/plain" });
        return { uri: content_uri };
    },
    async download({ uri }) {
        const url = client.mxcUrlToHttp(uri, undefined, undefined, undefined, false, true, true);
        const response = await fetch(url, { headers: { Authorization: `Bearer ${client.getAccessToken()}` } });
        return { body: await response.text() };
    },
    set_name: ({ name }) => client.setDisplayName(name),
    profile: async ({ user_id }) => ({ name: (await client.getProfileInfo(user_id)).displayname }),
    receipt: ({ room_id, event_id }) => client.sendReadReceipt(client.getRoom(room_id).findEventById(event_id)),
    wait: ({ fact }) =>
        new Promise((resolve) => {
            const look = () => {
                const found = take(fact);
                if (!found) return;
                waiting = waiting.filter((other) => other !== look);
                resolve(found);
            };
            waiting.push(look);
            look();
        }),
    async paginate({ room_id, limit }) {
        const room = client.getRoom(room_id);
        const timeline = room.getLiveTimeline();
        const texts = () =>
            timeline.getEvents().filter((event) => event.getType() === "m.room.message" && event.getContent().body);
        while (texts().length < limit) {
            if (!(await client.paginateEventTimeline(timeline, { backwards: true, limit: 100 }))) break;
        }
        return { bodies: texts().map((event) => event.getContent().body).reverse().slice(0, limit) };
    },
};

for await (const line of createInterface({ input: process.stdin })) {
    const { command, ...parameters } = JSON.parse(line);
    let answer;
    try {
        const result = await commands[command](parameters);
        // Results may be objects of the library: only plain members go out.
        const ids = ["user_id", "device_id", "room_id", "event_id", "user_ids", "room_ids", "event_ids"];
        const keys = [...ids, "bodies", "body", "flow", "key", "pushers", "name", "membership", "uri"];
        answer = { ok: command === "wait" ? result : Object.fromEntries(keys.map((key) => [key, result?.[key]])) };
    } catch (error) {
        answer = { error: error.stack ?? String(error) };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
}
process.exit(0);

// What matrix-js-sdk does with its own cryptography; see ../README.md.

import {
    CryptoEvent,
    decodeRecoveryKey,
    VerificationPhase,
    VerificationRequestEvent,
    VerifierEvent,
} from "matrix-js-sdk/lib/crypto-api/index.js";

let client;
let saw;
let sas;
let recoveryKey;
// The library refers to verifications weakly: those that nobody holds are collected and never go on.
const held = [];

// The library asks for the key of the secret storage with this.
export const cryptoCallbacks = {
    getSecretStorageKey: async ({ keys }) => [Object.keys(keys)[0], recoveryKey],
};

export async function start(ofClient, tell) {
    [client, saw] = [ofClient, tell];
    await client.initRustCrypto({ useIndexedDB: false });
    // The library knows how to ask its user's other devices for keys, but leaves it off.
    client.getCrypto().olmMachine.roomKeyRequestsEnabled = true;
    client.on(CryptoEvent.VerificationRequestReceived, async (request) => {
        whenIn(VerificationPhase.Started, request, () => follow(request.verifier, request.otherUserId));
        await request.accept();
    });
}

function whenIn(phase, request, act) {
    held.push(request);
    const look = () => {
        if (request.phase !== phase) return;
        request.off(VerificationRequestEvent.Change, look);
        act();
    };
    request.on(VerificationRequestEvent.Change, look);
    look();
}

function follow(verifier, user_id) {
    held.push(verifier);
    const show = (shown) => {
        sas = shown;
        saw("sas", { emoji: shown.sas.emoji.map(([symbol]) => symbol).join(" ") });
    };
    verifier.on(VerifierEvent.ShowSas, show);
    verifier.verify().then(
        () => saw("verified", { user_id }),
        (error) => saw("not verified", { user_id, error: String(error) }),
    );
}

export const commands = {
    // Makes cross-signing keys; the first ones need no password.
    trust: () => client.getCrypto().bootstrapCrossSigning({ authUploadDeviceSigningKeys: (request) => request(null) }),
    async verify({ user_id, device_id }) {
        const crypto = client.getCrypto();
        const known = await crypto.getUserDeviceInfo([user_id], true);
        if (!known.get(user_id)?.has(device_id)) throw new Error(`${device_id} is not known`);
        const request = await crypto.requestDeviceVerification(user_id, device_id);
        whenIn(VerificationPhase.Ready, request, async () => {
            follow(await request.startVerification("m.sas.v1"), user_id);
        });
        return { flow: request.transactionId };
    },
    confirm: () => sas.confirm(),
    async backup() {
        const crypto = client.getCrypto();
        const key = await crypto.createRecoveryKeyFromPassphrase();
        recoveryKey = key.privateKey;
        const uploaded = new Promise((resolve) => {
            client.on(CryptoEvent.KeyBackupSessionsRemaining, (remaining) => remaining === 0 && resolve());
        });
        const createSecretStorageKey = async () => key;
        await crypto.bootstrapSecretStorage({
            createSecretStorageKey,
            setupNewSecretStorage: true,
            setupNewKeyBackup: true,
        });
        await uploaded;
        return { key: key.encodedPrivateKey };
    },
    async restore({ key }) {
        const crypto = client.getCrypto();
        recoveryKey = decodeRecoveryKey(key);
        // Private keys are taken in only where the public ones are known, which a new device asks for after its first sync.
        for (;;) {
            const changed = new Promise((resolve) => client.once(CryptoEvent.KeysChanged, resolve));
            if (await crypto.userHasCrossSigningKeys()) break;
            await changed;
        }
        await crypto.bootstrapCrossSigning({});
        await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
        await crypto.restoreKeyBackup();
    },
    // Waits until an event can be read.
    async read({ room_id, event_id }) {
        const event = client.getEventMapper()(await client.fetchRoomEvent(room_id, event_id));
        await client.decryptEventIfNeeded(event);
        while (event.isDecryptionFailure()) {
            await new Promise((resolve) => event.once("Event.decrypted", resolve));
        }
        return { body: event.getContent().body };
    },
};

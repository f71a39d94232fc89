// The login fallback: logs in with a password and hands the answer to the client that shows this page.
"use strict";

const endpoint = "/_matrix/client/v3/login";
const form = document.getElementById("login");
const message = document.getElementById("message");

// What a client may ask for besides: parameters of the login endpoint that are no credentials.
function parameters() {
    const query = new URLSearchParams(window.location.search);
    const body = {};
    for (const name of ["device_id", "initial_device_display_name"]) {
        if (query.has(name)) {
            body[name] = query.get(name);
        }
    }
    if (query.has("refresh_token")) {
        body.refresh_token = query.get("refresh_token") === "true";
    }
    return body;
}

async function offersPassword() {
    const response = await fetch(endpoint);
    const answer = await response.json();
    return (answer.flows || []).some((flow) => flow.type === "m.login.password");
}

async function logIn() {
    const body = parameters();
    body.type = "m.login.password";
    body.identifier = { type: "m.id.user", user: document.getElementById("user").value };
    body.password = document.getElementById("password").value;
    const response = await fetch(endpoint, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
    });
    const answer = await response.json();
    if (!response.ok) {
        throw new Error(answer.error || "The server refused.");
    }
    return answer;
}

form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = document.getElementById("submit");
    button.disabled = true;
    message.textContent = "";
    try {
        const answer = await logIn();
        form.hidden = true;
        message.textContent = "You are logged in.";
        if (window.matrixLogin && window.matrixLogin.onLogin) {
            window.matrixLogin.onLogin(answer);
        }
    } catch (error) {
        message.textContent = error.message;
        button.disabled = false;
    }
});

offersPassword().then((offers) => {
    if (!offers) {
        form.hidden = true;
        message.textContent = "This server offers no way to log in here.";
    }
});

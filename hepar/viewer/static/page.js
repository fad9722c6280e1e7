// What every page needs: its elements, new ones, numbers as text, and the JSON of its server.
"use strict";

const byId = (id) => document.getElementById(id);

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function shown(value) {
  return (Math.abs(value) >= 10 ? value.toFixed(0) : value.toFixed(2)).replace("-", "−");
}

// The body of an answer. An error of the server is thrown as its sentence, with its `status`; what stands before the
// server may answer without JSON.
async function fetchJson(path, options) {
  const response = await fetch(path, options);
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  throw Object.assign(new Error(body?.error ?? `The server's answer, ${response.status}, is not JSON.`), { status: response.status });
}

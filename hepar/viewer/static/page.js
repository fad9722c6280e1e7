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

// The body of an answer; an error of the server is thrown as its sentence.
async function fetchJson(path, options) {
  const response = await fetch(path, options);
  const body = await response.json();
  if (!response.ok) throw new Error(body.error);
  return body;
}

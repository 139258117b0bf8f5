// A click on a question's pencil names the question to the page's hidden controls. Gradio inserts this script twice.
if (!window.seedJaxEdits) {
  window.seedJaxEdits = true;
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-edit]");
    if (!button) return;
    const field = document.querySelector("#edit-number textarea, #edit-number input");
    field.value = button.dataset.edit;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    setTimeout(() => document.querySelector("#edit-button").click(), 50);
  });
}

// A picture asks for more like it; "/" goes to the box, arrows from picture to picture.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-id]");
  if (button) {
    trigger("click", { id: button.dataset.id });
  }
});
element.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step && event.target.matches("[data-id]")) {
    const buttons = [...element.querySelectorAll("[data-id]")];
    buttons[buttons.indexOf(event.target) + step]?.focus();
    event.preventDefault();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.matches("input, textarea")) {
    document.querySelector("#query textarea, #query input").focus();
    event.preventDefault();
  }
});

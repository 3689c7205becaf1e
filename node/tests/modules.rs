//! Which modules inside a crate may import each other. Between crates, Cargo decides.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{ItemMod, ItemUse, UseName, UseRename, UseTree, visit::Visit};

/// The modules of the server, and what each may import of this crate. The gateway is a part of the
/// program, to which the library is another crate.
const SERVER: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("close", &[]),
    ("ids", &[]),
    ("line_limit", &["clock"]),
    ("metrics", &["close"]),
    ("rate", &["clock"]),
    (
        "transport",
        &["clock", "close", "ids", "line_limit", "metrics", "rate"],
    ),
    (
        "server",
        &[
            "clock",
            "close",
            "ids",
            "line_limit",
            "metrics",
            "rate",
            "transport",
        ],
    ),
    ("gateway", &[]),
];

#[test]
fn the_modules_of_the_server_import_what_the_table_allows() {
    let imports = imports_of("node");
    for (module, imported) in &imports {
        let row = SERVER.iter().find(|(name, _)| name == module);
        let (_, allowed) = row.unwrap_or_else(|| panic!("{module} is not in the table"));
        for other in imported {
            assert!(allowed.contains(&&**other), "{module} imports {other}");
        }
    }
    assert_eq!(imports.len(), SERVER.len(), "the table names what is there");
}

#[test]
fn no_crate_has_a_cycle_between_its_modules() {
    for name in ["protocol", "emitter", "adapter", "node"] {
        let mut rest = imports_of(name);
        // A module that imports nothing of the rest cannot be part of a cycle.
        for _ in 0..rest.len() {
            let names: BTreeSet<_> = rest.keys().cloned().collect();
            rest.retain(|_, imported| !imported.is_disjoint(&names));
        }
        assert!(rest.is_empty(), "{name}: a cycle among {rest:?}");
    }
}

#[test]
fn the_transport_knows_no_namespaces() {
    for file in sources(&source_of("node").join("transport")) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("socket_io::"), "{}", file.display());
    }
}

/// The modules right below the root of a crate, and which of the others each imports.
fn imports_of(name: &str) -> BTreeMap<String, BTreeSet<String>> {
    let source = source_of(name);
    let mut imports = BTreeMap::<_, BTreeSet<_>>::new();
    for file in sources(&source) {
        let relative = file.strip_prefix(&source).unwrap().with_extension("");
        let module = relative.iter().map(|part| part.to_str().unwrap());
        let module: Vec<_> = module.filter(|part| *part != "mod").collect();
        if matches!(module[0], "lib" | "main") {
            continue;
        }
        let imported = imports.entry(module[0].to_owned()).or_default();
        let mut paths = Paths {
            module: &module,
            found: Vec::new(),
        };
        paths.visit_file(&syn::parse_file(&fs::read_to_string(&file).unwrap()).unwrap());
        for path in paths.found {
            let other = path.strip_prefix("crate::").unwrap_or_default();
            let other = other.split("::").next().unwrap_or_default();
            // Other names than those of modules are exported by the root.
            if other.starts_with(char::is_lowercase) && other != module[0] {
                imported.insert(other.to_owned());
            }
        }
    }
    imports
}

/// All paths in a file outside of its tests. Relative ones begin at the root of the crate.
struct Paths<'a> {
    module: &'a [&'a str],
    found: Vec<String>,
}

impl Paths<'_> {
    fn add(&mut self, path: &[String]) {
        let supers = path.iter().take_while(|part| *part == "super").count();
        let parent = self.module.len().saturating_sub(supers);
        let parent = ["crate"].iter().chain(&self.module[..parent]);
        let parent = parent.filter(|_| supers > 0).copied();
        let whole: Vec<_> = parent
            .chain(path[supers..].iter().map(String::as_str))
            .collect();
        self.found.push(whole.join("::"));
    }

    fn add_tree(&mut self, tree: &UseTree, mut before: Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.add_tree(&path.tree, before);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(tree, before.clone());
                }
            }
            UseTree::Name(UseName { ident }) | UseTree::Rename(UseRename { ident, .. }) => {
                before.push(ident.to_string());
                self.add(&before);
            }
            UseTree::Glob(_) => self.add(&before),
        }
    }
}

impl Visit<'_> for Paths<'_> {
    fn visit_item_use(&mut self, item: &ItemUse) {
        self.add_tree(&item.tree, Vec::new());
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let parts = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string());
        self.add(&parts.collect::<Vec<_>>());
        syn::visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &ItemMod) {
        if item.ident != "tests" {
            syn::visit::visit_item_mod(self, item);
        }
    }
}

fn source_of(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .join(name)
        .join("src")
}

/// The source files below a folder, without files of tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let is_source = |path: &PathBuf| {
        path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("tests.rs")
    };
    let deeper = folders
        .iter()
        .filter(|path| !path.ends_with("tests"))
        .flat_map(|path| sources(path));
    files.into_iter().filter(is_source).chain(deeper).collect()
}

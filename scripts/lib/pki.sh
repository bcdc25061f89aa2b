# Certificates of a cluster, made by openssl. Sourced after common.sh; $pki is the folder.

new_key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

make_authority() {
  openssl req -x509 "${new_key[@]}" -days 3650 -subj /CN=dev-cluster -keyout "$pki/ca.key" -out "$pki/ca.crt" 2>/dev/null
}

# certificate NAME SUBJECT [SAN]
certificate() {
  local out=$pki/$1 subject=$2 san=${3:-}
  openssl req -new "${new_key[@]}" -keyout "$out.key" -out "$out.csr" -subj "$subject" 2>/dev/null
  printf 'extendedKeyUsage=clientAuth,serverAuth\n%s' "${san:+subjectAltName=$san}" >"$out.ext"
  openssl x509 -req -in "$out.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -set_serial "0x$(openssl rand -hex 16)" \
    -days 3650 -extfile "$out.ext" -out "$out.crt" 2>/dev/null
  rm "$out.csr" "$out.ext"
}

# kubeconfig_of NAME SERVER FILE: for the certificate NAME; readable by its owner only.
kubeconfig_of() {
  ( umask 077
    cat >"$3.new" <<K
apiVersion: v1
kind: Config
clusters: [{name: dev, cluster: {server: "$2", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}}]
users: [{name: user, user: {client-certificate-data: $(base64 -w0 "$pki/$1.crt"), client-key-data: $(base64 -w0 "$pki/$1.key")}}]
contexts: [{name: dev, context: {cluster: dev, user: user}}]
current-context: dev
K
  )
  mv "$3.new" "$3"
}
